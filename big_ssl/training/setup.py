"""Builds the jitted parts of a run from its config: mesh, system, initialisation and step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from big_ssl.data.fields import Image
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated, state_shardings
from big_ssl.training import batches, build, requirements, schedules, train_step
from big_ssl.training import state as state_lib
from big_ssl.training.model import build_model
from big_ssl.training.system import System


class Setup(NamedTuple):
    """The parts of a run that do not change while it runs.

    init: () -> TrainState, jitted; step: (state, batch) -> (state, metrics), jitted, donating
    the state; abstract_state: shapes, dtypes and shardings.
    """

    mesh: Mesh
    system: System
    tokenizer: Any
    init: Callable
    step: Callable
    abstract_state: state_lib.TrainState


def set_up(config: Mapping, devices=None, first: int = 0) -> Setup:
    """Everything up to the first compilation; nothing is computed yet.

    Args:
      config: of a run or a stage.
      devices: all by default.
      first: the steps that the run took in earlier stages.

    Raises:
      RequirementsError: if parts do not fit together: the mesh and the devices or a batch, a vocabulary and
        its size, widths, lengths, the groups of a batch norm.
    """
    try:
        return _set_up(config, _mesh(config, devices), first)
    except (ValueError, OSError) as error:
        raise requirements.RequirementsError(str(error)) from error


def _set_up(config, mesh, first):
    system, optimizer, lr_multipliers, init = build_model(config, mesh)
    rate = schedules.build(config["learning_rate"], config["total_steps"])
    shapes = jax.eval_shape(init)
    lr_multipliers.check(shapes.params)
    shardings = state_shardings(mesh, shapes, config["sharding"])
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings.params)
    system = dataclasses.replace(system, specs=specs)
    grad_fn = train_step.value_and_grad(system, config["grad_accum"], mesh)
    momentum = schedules.ema_momentum(config["ema"], config["total_steps"])
    window = config["failure_limits"]["window_examples"]
    step = train_step.make_step(
        grad_fn,
        system.project,
        optimizer,
        rate,
        lr_multipliers.factors,
        momentum,
        config["seed"],
        window,
        first,
    )
    step = jax.jit(fsdp.within(mesh, step), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    # Traced now, for its errors; the first step reuses the trace.
    step.eval_shape(abstract, batches.abstract_global_batch(config, mesh_lib.batch_sharding(mesh)))
    return Setup(
        mesh=mesh,
        system=system,
        tokenizer=build.tokenizer(config),
        init=jax.jit(init, out_shardings=shardings),
        step=step,
        abstract_state=abstract,
    )


def _mesh(config, devices):
    """The config's mesh. Raises RequirementsError if it does not divide the devices and every batch."""
    devices = devices or jax.devices()
    sizes = mesh_lib.sizes_for(devices[0].device_kind, config["mesh"], config["mesh_rules"])
    mesh = mesh_lib.make_mesh(sizes, devices)
    shards, parts = mesh_lib.batch_shards(mesh), config["grad_accum"]
    for name, stream in config["streams"].items():
        if stream["batch_size"] % (shards * parts):
            raise requirements.RequirementsError(
                f"streams.{name}.batch_size is {stream['batch_size']}; "
                f"it must be a multiple of data x fsdp x grad_accum = {shards} x {parts}"
            )
        if parts > 1:
            _check_groups(name, build.stream_fields(name, config), stream["batch_size"] // parts, shards)
    return mesh


def _check_groups(stream, fields, part, shards):
    """Raises RequirementsError unless devices have whole mask groups of a microbatch of `part` examples."""
    for name, field in fields.items():
        mask = field.block_mask if isinstance(field, Image) else None
        if mask is not None and part // min(mask.mask_group, part) % shards:
            raise requirements.RequirementsError(
                f"streams.{stream}.data.fields.{name}.mask.mask_group is {mask.mask_group}; with grad_accum "
                f"it must divide a device's part of a microbatch, {part // shards}"
            )
