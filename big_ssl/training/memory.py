"""Estimates a training step's memory per device without compiling it.

The state and the batch are exact. Gradients are as large as the parameters. Activations are the residuals
that the backward pass reads, after config.remat: they are counted in the traced program for the whole batch
and divided by the number of shards. The estimate excludes temporaries within a layer, so a step may need
more; and the compiler may recompute cheap operations, so it may need less.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.extend.core
from jax.sharding import AbstractMesh

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import bytes_per_device, state_shardings
from big_ssl.training import batches
from big_ssl.training.model import Model, build_model
from big_ssl.training.state import evaluation_variables


class Memory(NamedTuple):
    """Bytes on one device. activations: residuals for the backward pass."""

    state: int
    batch: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """The bytes of a running step."""
        return sum(self)


def count(config: Mapping, devices: int, device_kind: str) -> Memory:
    """Estimates a step's memory.

    Args:
      config: the training config.
      devices: the number of devices, which need not exist.
      device_kind: JAX's name of the device.

    Returns:
      Memory.

    Raises:
      ValueError: if the mesh does not divide the devices, or the parts of the config do not fit together.
    """
    sizes = mesh_lib.sizes_for(device_kind, config["mesh"], config["mesh_rules"])
    mesh = AbstractMesh(mesh_lib.mesh_shape(sizes, devices), mesh_lib.AXES)
    # Traced for one device, on which arrays have the whole batch.
    model = build_model(config, mesh_lib.make_mesh(dict.fromkeys(mesh_lib.AXES, 1), jax.local_devices()[:1]))
    state = jax.eval_shape(model.init)
    shardings = state_shardings(mesh, state, config["sharding"])
    batch = batches.abstract_global_batch(config, None)
    shards = mesh_lib.batch_shards(mesh)
    return Memory(
        _sharded_bytes(state, shardings),
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) // shards,
        _sharded_bytes(state.params, shardings.params),
        _residual_bytes(model, state, batch) // (shards * config["grad_accum"]),
    )


def _sharded_bytes(tree, shardings):
    return sum(jax.tree.leaves(jax.tree.map(bytes_per_device, tree, shardings)))


def _residual_bytes(model: Model, state, batch) -> int:
    """Bytes that the forward pass computes and the backward pass reads."""

    def residuals(state, batch):
        teacher = evaluation_variables(state)

        def loss(params):
            key = jax.random.key(0)
            return model.system.loss(params, state.mutable, batch, key, state.step, teacher)[0]

        return jax.vjp(loss, state.params)[1]

    jaxpr: Any = jax.make_jaxpr(residuals)(state, batch).jaxpr
    inputs = {*jaxpr.invars, *jaxpr.constvars}
    saved = {var for var in jaxpr.outvars if isinstance(var, jax.extend.core.Var)} - inputs
    arrays: list[Any] = [var.aval for var in saved]
    return sum(array.size * array.dtype.itemsize for array in arrays)
