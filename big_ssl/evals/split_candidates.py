"""Searches many candidates, which are split over the devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_ssl.parallel.sharding import replicated

# The first axis of a mesh, which has all devices.
_AXIS = "data"


def split(mesh: Mesh, rows: Callable[[slice], np.ndarray], count: int) -> jax.Array:
    """Splits candidates [count, ...] over all devices, padded with zeros to equal parts.

    rows: slice -> these candidates; every process must be able to compute them.
    """
    size = -(-count // mesh.size) * mesh.size
    one = rows(slice(0, 1))

    def part(index):
        start, stop, _ = index[0].indices(size)
        values = rows(slice(start, min(stop, count))) if start < count else one[:0]
        return np.concatenate([values, np.zeros((stop - start - len(values), *one.shape[1:]), one.dtype)])

    shape, sharding = (size, *one.shape[1:]), NamedSharding(mesh, PartitionSpec(_AXIS))
    return jax.make_array_from_callback(shape, sharding, part)


def over_devices(function: Callable, mesh: Mesh) -> Callable:
    """Compiles function(candidates, attributes, queries) for two arrays of `split`, of which it gets one
    device's parts, and all queries. Its result must be the same on all devices."""
    part, whole = PartitionSpec(_AXIS), PartitionSpec()
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(part, part, whole), out_specs=whole, check_vma=False
    )
    return jax.jit(mapped, out_shardings=replicated(mesh))


def are_there(part: jax.Array, count: int) -> jax.Array:
    """bool[n], inside such a function: which of a device's n candidates are not padding."""
    return jax.lax.axis_index(_AXIS) * len(part) + jnp.arange(len(part)) < count


def joined(arrays):
    """Inside such a function: the devices' arrays [Q, k] as [Q, devices * k], in the order of the devices."""
    return jax.lax.all_gather(arrays, _AXIS, axis=1, tiled=True)


def total(values):
    """Inside such a function: the sum over the devices."""
    return jax.lax.psum(values, _AXIS)
