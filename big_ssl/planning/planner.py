"""Plans a run: compiles a config's training step for a topology, and derives memory, time and cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from big_ssl.parallel import hardware
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.planning import estimate, hlo
from big_ssl.planning.program import Program, argument_bytes, compile_step
from big_ssl.planning.topology import Topology
from big_ssl.training import batches, flops, loop


class Plan(NamedTuple):
    """A planned run.

    record: the JSON keys with plain values, None for unknown; program: None if the arguments alone exceed
    the memory, so that nothing was compiled; setup: training.loop.Setup on the planned mesh; unknown_loops:
    loops of unknown trip count, counted once.
    """

    record: dict[str, Any]
    program: Program | None
    setup: loop.Setup
    unknown_loops: int


def make_plan(config: Mapping, topology: Topology, devices: Sequence) -> Plan:
    """Plans a run.

    Args:
      config: validated.
      topology: the slices.
      devices: topology.devices(topology).

    Returns:
      A Plan.

    Raises:
      training.requirements.RequirementsError: if the mesh does not divide the devices or a batch; nothing is
        compiled then.
    """
    chip = hardware.chip(devices[0].device_kind)
    assert chip is not None, devices[0].device_kind  # every generation of topology.py is in the table
    setup = set_up(config, devices)
    batch = batches.abstract_global_batch(config, mesh_lib.batch_sharding(setup.mesh))
    record = _record_before_compiling(config, topology, devices, chip, setup, batch)
    if record["argument_bytes"] > chip.hbm:
        return Plan(record | dict(fits=False), None, setup, 0)
    program = compile_step(setup, batch)
    record |= dict(
        argument_bytes=program.arguments,
        temp_bytes=program.temporaries,
        peak_bytes_per_device=program.peak,
        fits=program.fits,
        compile_seconds=round(program.seconds, 1),
    )
    if not program.text:
        return Plan(record, program, setup, 0)
    parsed = hlo.parse(program.text)
    collectives = list(hlo.collectives(parsed, len(devices)))
    record |= dict(
        compiled_flops_per_step=hlo.flops(parsed) * len(devices),
        collective_bytes_per_step=hlo.collective_bytes(collectives),
        unestimated_operations=hlo.unestimated(parsed),
    )
    record |= _times(record, estimate.step_seconds(parsed, collectives, chip, topology), chip)
    return Plan(record, program, setup, parsed.unknown_loops)


def set_up(config: Mapping, devices: Sequence) -> loop.Setup:
    """training.loop.set_up without the vocabulary file: a plan needs only its size."""
    return loop.set_up(dict(config, tokenizer=dict(config["tokenizer"], vocabulary="")), devices)


def _record_before_compiling(config, topology, devices, chip, setup, batch):
    """The record's values that need no compilation; every other key is None."""
    return dict(
        topology=str(topology),
        devices=len(devices),
        params=sum(leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params)),
        global_batch=sum(stream["batch_size"] for stream in config["streams"].values()),
        hbm_limit_bytes=chip.hbm,
        argument_bytes=argument_bytes((setup.abstract_state, batch)),
        temp_bytes=None,
        peak_bytes_per_device=None,
        fits=None,
        model_flops_per_step=flops.model_flops_per_step(setup.system, setup.abstract_state, batch),
        compiled_flops_per_step=None,
        collective_bytes_per_step=None,
        estimated_step_seconds=None,
        unestimated_operations=None,
        estimated_mfu=None,
        compile_seconds=None,
        total_steps=config["total_steps"],
        device_hours=None,
    )


def _times(record, seconds, chip):
    if seconds is None:
        return {}
    devices = record["devices"]
    return dict(
        estimated_step_seconds=seconds,
        estimated_mfu=estimate.mfu(record["model_flops_per_step"], seconds, devices, chip),
        device_hours=seconds * record["total_steps"] * devices / 3600,
    )
