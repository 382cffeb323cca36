"""All pairs of two sets of rows, tile by tile, with the second set rotating around the ring of devices."""

import functools

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from big_ssl.parallel.mesh import BATCH, BATCH_AXES, batch_shards


def ring_all_pairs(tile_fn, shared, rows, row_sums, columns, column_sums, *, mesh: Mesh | None, tile: int):
    """Applies tile_fn to every pair of a tile of rows and a tile of columns, in O(tile^2) memory a device.

    A device keeps its rows. Its columns rotate around the ring one tile at a time, together with their
    accumulators, so that only one tile is in flight.

    Args:
      tile_fn: (shared, row, row_sum, column, column_sum) -> (row_sum, column_sum), on pytrees of
        [tile, ...] arrays: inputs and accumulators of either side.
      shared: pytree that every call reads, such as a temperature.
      rows, row_sums, columns, column_sums: pytrees of [N, ...] arrays, sharded like a batch.
      mesh: the batch's; None for one device.
      tile: the largest number of rows in a tile; the largest divisor of a device's rows up to it is used.

    Returns:
      (row_sums, column_sums).
    """
    num_shards = 1 if mesh is None else batch_shards(mesh)
    local = functools.partial(_local_all_pairs, tile_fn, num_shards, tile)
    if num_shards > 1:
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(PartitionSpec(), *[BATCH] * 4), out_specs=(BATCH, BATCH)
        )
    return local(shared, rows, row_sums, columns, column_sums)


def _local_all_pairs(tile_fn, num_shards, tile, shared, *sides):
    """One device's part of `ring_all_pairs`."""
    tile = _tile_rows(jax.tree.leaves(sides)[0].shape[0], tile)
    rows, row_sums, columns, column_sums = (
        jax.tree.map(lambda x: x.reshape(-1, tile, *x.shape[1:]), side) for side in sides
    )

    def scan_rows(row_sums, column, column_sum):
        """Pairs one tile of columns with all of this device's rows."""

        def pair(i, sums):
            row_sums, column_sum = sums
            row_sum, column_sum = tile_fn(shared, _at(rows, i), _at(row_sums, i), column, column_sum)
            return _put(row_sums, row_sum, i), column_sum

        count = jax.tree.leaves(rows)[0].shape[0]
        return lax.fori_loop(0, count, pair, (row_sums, column_sum))

    def rotate(row_sums, column_and_sum):
        """Sends one tile of columns once around the ring, back to its own device."""

        def hop(_, carry):
            row_sums, column, column_sum = carry
            # Sent before the computation, which does not depend on it, so that the two overlap.
            next_column = _send_on(column, num_shards)
            row_sums, column_sum = scan_rows(row_sums, column, column_sum)
            return row_sums, next_column, _send_on(column_sum, num_shards)

        row_sums, _, column_sum = lax.fori_loop(0, num_shards, hop, (row_sums, *column_and_sum))
        return row_sums, column_sum

    row_sums, column_sums = lax.scan(rotate, row_sums, (columns, column_sums))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (row_sums, column_sums))


def _tile_rows(rows, limit):
    return next(size for size in range(min(rows, limit), 0, -1) if rows % size == 0)


def _at(tree, i):
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree, values, i):
    return jax.tree.map(lambda x, value: lax.dynamic_update_index_in_dim(x, value, i, 0), tree, values)


def _send_on(tree, num_shards):
    if num_shards == 1:
        return tree
    ring = [(i, (i + 1) % num_shards) for i in range(num_shards)]
    return jax.tree.map(lambda x: lax.ppermute(x, BATCH_AXES, ring), tree)
