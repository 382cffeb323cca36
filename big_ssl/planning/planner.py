"""A plan: a config's training step compiled for a topology, and what that says about the run."""

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
    """record: the JSON keys, plain values, null where unknown; program: None where the arguments
    alone left nothing to compile; setup: training.loop.Setup on the planned mesh."""

    record: dict[str, Any]
    program: Program | None
    setup: loop.Setup
    unknown_loops: int


def make_plan(config: Mapping, topology: Topology, devices: Sequence) -> Plan:
    """Plans a validated config. Raises training.requirements.RequirementsError where the mesh can't
    divide the devices or a batch, before anything is compiled."""
    chip = hardware.chip(devices[0].device_kind)
    assert chip is not None, devices[0].device_kind  # every generation of topology.py is in the table
    setup = set_up(config, devices)
    batch = batches.abstract_global_batch(config, mesh_lib.batch_sharding(setup.mesh))
    record = _known_before(config, topology, devices, chip, setup, batch)
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
    read = hlo.parse(program.text)
    found = list(hlo.collectives(read, len(devices)))
    record |= dict(
        compiled_flops_per_step=hlo.flops(read) * len(devices),
        collective_bytes_per_step=hlo.collective_bytes(found),
    )
    record |= _times(record, estimate.step_seconds(read, found, chip, topology), chip)
    return Plan(record, program, setup, read.unknown_loops)


def set_up(config: Mapping, devices: Sequence) -> loop.Setup:
    """training.loop.set_up without the vocabulary's file: a plan needs its size only."""
    return loop.set_up(dict(config, tokenizer=dict(config["tokenizer"], vocabulary="")), devices)


def _known_before(config, topology, devices, chip, setup, batch):
    """What needs no compilation; every other key null."""
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
