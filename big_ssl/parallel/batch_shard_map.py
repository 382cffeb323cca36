"""shard_map over the batch, for functions that also read large replicated arrays.

Left to itself, the compiler may shard the large arrays instead and send every example to every device; in a
loop, it may psum in every iteration what could be summed once, after the last.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from big_ssl.parallel.mesh import BATCH, BATCH_AXES
from big_ssl.parallel.notices import warn_once


def shard_map_over_batch(function: Callable, shared, per_example):
    """Calls a function on every device of the current mesh, with that device's examples.

    Args:
      function: (shared, per_example, axes) -> (per_example_outputs, totals). It reduces totals over `axes`
        itself, for example by jax.lax.psum. `axes` is () if no mesh is set, or if its devices do not divide
        the first axis, which logs a warning: then there is nothing to reduce.
      shared: pytree, replicated; its gradient is psum-ed once, at the end.
      per_example: pytree of arrays, sharded over the first axis.

    Returns:
      (per_example_outputs, sharded over the first axis; totals, replicated).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(shared, per_example, ())
    size, shards = len(jax.tree.leaves(per_example)[0]), math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if size % shards:
        warn_once(
            f"{function.__module__}: {size} examples, or mask groups of them, are no multiple of data x fsdp "
            f"= {shards}; the compiler splits the work as it sees fit, which is much slower"
        )
        return function(shared, per_example, ())

    def local(shared, per_example):
        # Mark as device-varying here, outside loops, so its gradient is psum-ed once.
        shared = jax.tree.map(lambda x: jax.lax.pcast(x, BATCH_AXES, to="varying"), shared)
        return function(shared, per_example, BATCH_AXES)

    replicated = PartitionSpec()
    return jax.shard_map(local, in_specs=(replicated, BATCH), out_specs=(BATCH, replicated))(
        shared, per_example
    )
