"""What a training step takes of a device's memory, as far as it is known without compiling it.

The state and the batch are exact. Beside them a step holds the gradients, and from its forward to its
backward pass what the latter reads, after config.remat: this is counted in the traced program, all of the
batch, and divided by the devices that share it. Not counted is what a single layer needs while it is
computed, so that a step may need more; and the compiler may compute again what is cheap, so that it may
need less.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.extend.core
from jax.sharding import AbstractMesh

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import bytes_per_device, state_shardings
from big_ssl.training import build
from big_ssl.training.model import Model, build_model
from big_ssl.training.state import evaluation_variables


class Memory(NamedTuple):
    """Bytes on one device. activations: what is kept for the backward pass."""

    state: int
    batch: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """Of a step while it runs."""
        return sum(self)


def count(config: Mapping, devices: int, device_kind: str) -> Memory:
    """A step's memory on so many devices of that kind, which need not exist.

    Raises ValueError where the mesh can't divide the devices, or the parts of the config do not fit.
    """
    sizes = mesh_lib.sizes_for(device_kind, config["mesh"], config["mesh_rules"])
    mesh = AbstractMesh(mesh_lib.mesh_shape(sizes, devices), mesh_lib.AXES)
    # Traced for one device, where all arrays are of the whole batch.
    model = build_model(config, mesh_lib.make_mesh(dict.fromkeys(mesh_lib.AXES, 1), jax.local_devices()[:1]))
    state = jax.eval_shape(model.init)
    shardings = state_shardings(mesh, state, config["sharding"])
    batch = build.abstract_global_batch(config, None)
    shards = mesh_lib.batch_shards(mesh)
    return Memory(
        _bytes_held(state, shardings),
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) // shards,
        _bytes_held(state.params, shardings.params),
        _residual_bytes(model, state, batch) // (shards * config["grad_accum"]),
    )


def _bytes_held(tree, shardings):
    return sum(jax.tree.leaves(jax.tree.map(bytes_per_device, tree, shardings)))


def _residual_bytes(model: Model, state, batch) -> int:
    """Bytes of what the forward pass computes and the backward pass reads."""

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
