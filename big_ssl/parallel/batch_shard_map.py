"""Functions of a batch and of arrays as large as a model's, that each device computes of its own examples.

Left to itself the compiler may split the large arrays instead, and send every example to every device; or, in
a loop, add up over devices at every turn what could be added once, after the last.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from big_ssl.parallel.mesh import BATCH, BATCH_AXES
from big_ssl.parallel.notices import warn_once


def shard_map_over_batch(function: Callable, shared, split):
    """function(shared, split, axes) -> (each, totals), on every device of the mesh that is set.

    shared: a pytree of what every device needs whole; its gradient is added over devices once, at the end.
    split: arrays of which each device has its part of the first axis, as has `each`. totals: of all devices,
    which the function adds up itself, by jax.lax.psum over `axes` say. Where no mesh is set, or its devices
    do not divide the first axis (which is told in a warning), axes is empty and there is nothing to add.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(shared, split, ())
    size, shards = len(jax.tree.leaves(split)[0]), math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if size % shards:
        warn_once(
            f"{function.__module__}: {size} examples, or mask groups of them, are no multiple of data x fsdp "
            f"= {shards}; the compiler splits the work as it sees fit, which is much slower"
        )
        return function(shared, split, ())

    def local(shared, split):
        # Said before any loop: where an array begins to differ between devices, its gradient is added up.
        shared = jax.tree.map(lambda x: jax.lax.pcast(x, BATCH_AXES, to="varying"), shared)
        return function(shared, split, BATCH_AXES)

    every = PartitionSpec()
    return jax.shard_map(local, in_specs=(every, BATCH), out_specs=(BATCH, every))(shared, split)
