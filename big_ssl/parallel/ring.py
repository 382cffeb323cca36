"""All pairs of two sets of rows, a tile at a time, with the second set going round the devices."""

import functools

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from big_ssl.parallel.mesh import BATCH, BATCH_AXES, batch_shards


def ring_all_pairs(visit, shared, rows, row_sums, columns, column_sums, *, mesh: Mesh | None, tile: int):
    """Shows every tile of `rows` every tile of `columns`, once, in O(tile^2) memory a device.

    visit(shared, row, row_sum, column, column_sum) -> (row_sum, column_sum), on tiles: pytrees
      of [tile, ...] of what is read and of what is accumulated on either side.
    shared: pytree that every visit reads, a temperature say; the other four: pytrees of
      [N, ...], split over the mesh like a batch (mesh None: all of it is here).
    tile: rows of a tile at most; the largest divisor of a device's rows within it is taken.
    Returns (row_sums, column_sums).

    A device keeps its rows. Its columns go round the ring of devices one tile at a time, what
    they accumulate with them, so that only one tile is ever on its way.
    """
    ways = 1 if mesh is None else batch_shards(mesh)
    local = functools.partial(_local_sweep, visit, ways, tile)
    if ways > 1:
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(PartitionSpec(), *[BATCH] * 4), out_specs=(BATCH, BATCH)
        )
    return local(shared, rows, row_sums, columns, column_sums)


def _local_sweep(visit, ways, tile, shared, *sides):
    """One device's part of the ring_all_pairs; see `ring_all_pairs`."""
    tile = _tile_rows(jax.tree.leaves(sides)[0].shape[0], tile)
    rows, row_sums, columns, column_sums = (
        jax.tree.map(lambda x: x.reshape(-1, tile, *x.shape[1:]), side) for side in sides
    )

    def meet_rows(row_sums, column, column_sum):
        """One tile of columns before all of this device's rows."""

        def meet(i, sums):
            row_sums, column_sum = sums
            new, column_sum = visit(shared, _at(rows, i), _at(row_sums, i), column, column_sum)
            return _put(row_sums, new, i), column_sum

        count = jax.tree.leaves(rows)[0].shape[0]
        return lax.fori_loop(0, count, meet, (row_sums, column_sum))

    def go_round(row_sums, travelling):
        """One tile of columns round the whole ring and home again."""

        def hop(_, carry):
            row_sums, column, column_sum = carry
            # Sent on before the work that it does not depend on, so that the two overlap.
            after = _send_on(column, ways)
            row_sums, column_sum = meet_rows(row_sums, column, column_sum)
            return row_sums, after, _send_on(column_sum, ways)

        row_sums, _, column_sum = lax.fori_loop(0, ways, hop, (row_sums, *travelling))
        return row_sums, column_sum

    row_sums, column_sums = lax.scan(go_round, row_sums, (columns, column_sums))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (row_sums, column_sums))


def _tile_rows(rows, limit):
    return next(size for size in range(min(rows, limit), 0, -1) if rows % size == 0)


def _at(tree, i):
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree, values, i):
    return jax.tree.map(lambda x, value: lax.dynamic_update_index_in_dim(x, value, i, 0), tree, values)


def _send_on(tree, ways):
    if ways == 1:
        return tree
    ring = [(i, (i + 1) % ways) for i in range(ways)]
    return jax.tree.map(lambda x: lax.ppermute(x, BATCH_AXES, ring), tree)
