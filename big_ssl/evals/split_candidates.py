"""Search among many candidates, of which each device holds a part."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_ssl.parallel.sharding import replicated

# Of a mesh with all devices along its first axis.
_AXIS = "data"


def split(mesh: Mesh, rows: Callable[[slice], np.ndarray], count: int) -> jax.Array:
    """[count, ...] over all devices, zeros after the last so that each has equally many.

    rows: a slice of them -> these, which every process can make.
    """
    size = -(-count // mesh.size) * mesh.size
    one = rows(slice(0, 1))

    def part(index):
        start, stop, _ = index[0].indices(size)
        held = rows(slice(start, min(stop, count))) if start < count else one[:0]
        return np.concatenate([held, np.zeros((stop - start - len(held), *one.shape[1:]), one.dtype)])

    shape, sharding = (size, *one.shape[1:]), NamedSharding(mesh, PartitionSpec(_AXIS))
    return jax.make_array_from_callback(shape, sharding, part)


def over_devices(function: Callable, mesh: Mesh) -> Callable:
    """Compiles function(candidates, ..., queries), which sees one device's part of the candidates, of two
    arrays of `split`, and all queries. What it gives must be the same on all devices."""
    part, whole = PartitionSpec(_AXIS), PartitionSpec()
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(part, part, whole), out_specs=whole, check_vma=False
    )
    return jax.jit(mapped, out_shardings=replicated(mesh))


def are_there(part: jax.Array, count: int) -> jax.Array:
    """bool[n], inside such a function: which of a device's n candidates are not the zeros after the last."""
    return jax.lax.axis_index(_AXIS) * len(part) + jnp.arange(len(part)) < count


def joined(arrays):
    """Inside such a function: arrays [Q, k] of all devices as [Q, devices * k], in their order."""
    return jax.lax.all_gather(arrays, _AXIS, axis=1, tiled=True)


def total(values):
    """Inside such a function: the sum over the devices."""
    return jax.lax.psum(values, _AXIS)
