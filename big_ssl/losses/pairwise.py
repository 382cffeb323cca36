"""Row and column reductions of the N x N logit matrix, in three equivalent implementations.

"dense" materialises the matrix and leaves the rest to the compiler. "gathered" all-gathers the embeddings, so
that each device computes its own rows and columns (open_clip's local loss). "ring" holds one tile at a time.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from big_ssl.parallel.mesh import BATCH, BATCH_AXES, batch_shards
from big_ssl.parallel.ring import ring_all_pairs

IMPLEMENTATIONS = ("ring", "gathered", "dense")

# The logit of padding. Finite: a tile of padding alone must not make inf - inf.
_PADDING = -1e30


class Reduced(NamedTuple):
    """The logit matrix, reduced along its rows and along its columns.

    rows, columns: float32[N], the reductions; row_correct, column_correct: bool[N], whether a positive's
    logit is above every negative's. A tie is a miss, so a collapsed model has an accuracy of 0.
    """

    rows: jax.Array
    columns: jax.Array
    row_correct: jax.Array
    column_correct: jax.Array


@dataclasses.dataclass(frozen=True)
class Pairwise:
    """Reductions of the N x N logit matrix.

    implementation: one of IMPLEMENTATIONS; mesh: the batch's, None for one device; tile: the largest number
    of rows in a tile of the ring.
    """

    implementation: str = "ring"
    mesh: Mesh | None = None
    tile: int = 1024

    def logsumexp(self, x, y, scale, positives=None, valid=None) -> Reduced:
        """Computes logsumexp over each row and each column of the logits scale * x @ y.T.

        x, y: float32[N, D]; scale: float32[]; positives, valid: see `positive_parts`. Padding is no candidate
        of any row or column; what is returned for padding itself means nothing.
        """
        return self._reduce(_LOGSUMEXP, x, y, scale, jnp.zeros(()), positives, valid)

    def softplus(self, x, y, scale, bias, positives=None, valid=None) -> Reduced:
        """Sums log(1 + exp(l)) over each row of the logits l = scale * x @ y.T + bias.

        As `logsumexp`, but `columns` is zeros: the rows' sums contain every pair already.
        """
        return self._reduce(_SOFTPLUS, x, y, scale, bias, positives, valid)

    def _reduce(self, kind, x, y, scale, bias, positives, valid):
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"contrastive: implementation is {self.implementation!r}; use {', '.join(IMPLEMENTATIONS)}"
            )
        row, column = positive_parts(positives, len(x), valid)
        if self.implementation == "ring":
            return _ring(kind, self.mesh, self.tile, x, y, scale, bias, row, column)
        if self.implementation == "gathered" and self.mesh is not None and batch_shards(self.mesh) > 1:
            return _gathered(kind, self.mesh, x, y, scale, bias, row, column)
        return _dense(kind, x, y, scale, bias, row, column)


def positive_parts(positives, count: int, valid=None) -> tuple[dict, dict]:
    """Per-row and per-column arrays from which any tile can compute its positive pairs.

    Args:
      positives: None pairs row i with column i; int[N] labels pair rows and columns of equal label (UniCL,
        arXiv 2204.03610, equation 3), int[N, lanes] those that are equal in all lanes, such as the two halves
        of a 64-bit hash; bool[N, N] is an arbitrary mask, whose memory the caller pays for.
      count: N.
      valid: bool[N], False for padding, which is neither a positive nor a negative; None for no padding.
    """
    index = jnp.arange(count)
    padding = {} if valid is None else dict(valid=valid)
    if is_mask(positives):
        return dict(mask=positives) | padding, dict(index=index) | padding
    labels = index if positives is None else positives
    # A tuple, because accelerators pad an array's last axis, here one or two lanes, to 128.
    lanes = tuple(jnp.moveaxis(labels.reshape(count, -1), 1, 0))
    return dict(label=lanes) | padding, dict(label=lanes) | padding


def is_mask(positives) -> bool:
    """Whether positives are bool[N, N] and not labels."""
    return positives is not None and positives.dtype == jnp.bool_


def _positive(row, column):
    """A tile's positive pairs: bool[rows, columns]. A positive that is padding has padding's logit."""
    if "mask" in row:
        size = column["index"].shape[0]
        return lax.dynamic_slice_in_dim(row["mask"], column["index"][0], size, axis=1)
    equal = (x[:, None] == y[None, :] for x, y in zip(row["label"], column["label"], strict=True))
    return functools.reduce(jnp.logical_and, equal)


def _without_padding(logits, row, column):
    """A tile's logits for the rows, whose candidates are columns, and for the columns."""
    if "valid" not in row:
        return logits, logits
    for_rows = jnp.where(column["valid"][None, :], logits, _PADDING)
    return for_rows, jnp.where(row["valid"][:, None], logits, _PADDING)


def _logits(x, y, scale, bias):
    # At a scale of 100 bfloat16 products would be off by a half.
    return scale * jnp.matmul(x, y.T, precision="highest", preferred_element_type=jnp.float32) + bias


class _Reduction(NamedTuple):
    """One of the two reductions, over the full matrix and tile by tile.

    whole(logits, axis) -> float32[N]. add(logits, axis, sums, old_best, best) adds a tile to the sums so far,
    which are relative to the largest logit before and after this tile. finish(sums, best) -> float32[N].
    weights(for_rows, for_columns, row, column, row_grad, column_grad) is the derivative by the logits, which
    differ in padding alone.
    """

    whole: Any
    add: Any
    finish: Any
    weights: Any


def _add_exponentials(logits, axis, sums, old_best, best):
    return sums * jnp.exp(old_best - best) + jnp.exp(logits - jnp.expand_dims(best, axis)).sum(axis)


def _softmax_weights(for_rows, for_columns, row, column, row_grad, column_grad):
    by_row = row_grad[:, None] * jnp.exp(for_rows - row[:, None])
    return by_row + column_grad[None, :] * jnp.exp(for_columns - column[None, :])


_LOGSUMEXP = _Reduction(
    whole=jax.nn.logsumexp,
    add=_add_exponentials,
    finish=lambda sums, best: best + jnp.log(sums),
    weights=_softmax_weights,
)
_SOFTPLUS = _Reduction(
    whole=lambda logits, axis: jax.nn.softplus(logits).sum(axis) if axis else jnp.zeros(logits.shape[1]),
    add=lambda logits, axis, sums, *_: sums + jax.nn.softplus(logits).sum(axis) if axis else sums,
    finish=lambda sums, best: sums,
    weights=lambda for_rows, _, row, column, row_grad, column_grad: (
        row_grad[:, None] * jax.nn.sigmoid(for_rows)
    ),
)


def _dense(kind, x, y, scale, bias, row, column):
    logits, positive = _logits(x, y, scale, bias), _positive(row, column)
    for_rows, for_columns = _without_padding(logits, row, column)
    correct = [_correct(*_best(z, positive, axis)) for z, axis in ((for_rows, 1), (for_columns, 0))]
    return Reduced(kind.whole(for_rows, 1), kind.whole(for_columns, 0), *correct)


def _gathered(kind, mesh, x, y, scale, bias, row, column):
    """Each device computes the full rows of its x and the full columns of its y."""

    def local(x, y, scale, bias, row, column):
        all_gather = functools.partial(lax.all_gather, axis_name=BATCH_AXES, tiled=True)
        all_x, all_y, all_row, all_column = jax.tree.map(all_gather, (x, y, row, column))
        across = _dense(kind, x, all_y, scale, bias, row, all_column)
        down = _dense(kind, all_x, y, scale, bias, all_row, column)
        return Reduced(across.rows, down.columns, across.row_correct, down.column_correct)

    local = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(BATCH, BATCH, PartitionSpec(), PartitionSpec(), BATCH, BATCH),
        out_specs=BATCH,
    )
    return local(x, y, scale, bias, row, column)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ring(kind, mesh, tile, x, y, scale, bias, row, column):
    return _ring_forward(kind, mesh, tile, x, y, scale, bias, row, column)[0]


def _ring_forward(kind, mesh, tile, x, y, scale, bias, row, column):
    """One pass over all tiles; the residuals are the reductions only."""

    def tile_fn(shared, row, row_sum, column, column_sum):
        logits = _logits(row["x"], column["y"], *shared)
        positive = _positive(row, column)
        for_rows, for_columns = _without_padding(logits, row, column)
        return (
            _accumulate(kind, for_rows, positive, 1, *row_sum),
            _accumulate(kind, for_columns, positive, 0, *column_sum),
        )

    start = (jnp.zeros(len(x)), jnp.full(len(x), -jnp.inf), jnp.full(len(x), -jnp.inf))
    rows, columns = row | dict(x=x), column | dict(y=y)
    row_sum, column_sum = ring_all_pairs(
        tile_fn, (scale, bias), rows, start, columns, start, mesh=mesh, tile=tile
    )
    row_total, column_total = (kind.finish(s, jnp.maximum(p, n)) for s, p, n in (row_sum, column_sum))
    reduced = Reduced(row_total, column_total, _correct(*row_sum[1:]), _correct(*column_sum[1:]))
    padding = {name: value for name, value in row.items() if name == "valid"}
    return reduced, (x, y, scale, bias, row_total, column_total, padding)


def _ring_backward(kind, mesh, tile, residuals, cotangents):
    """Hand-written VJP: recomputes each tile's logits and accumulates both gradients."""
    x, y, scale, bias, row_total, column_total, padding = residuals

    def tile_fn(shared, row, row_sum, column, column_sum):
        logits = _without_padding(_logits(row["x"], column["y"], *shared), row, column)
        weights = kind.weights(*logits, row["total"], column["total"], row["grad"], column["grad"])
        products = functools.partial(jnp.matmul, precision="highest")
        d_x, d_bias = row_sum
        return (
            (d_x + products(weights, column["y"]), d_bias + weights.sum(1)),
            column_sum + products(weights.T, row["x"]),
        )

    rows = dict(x=x, total=row_total, grad=cotangents.rows) | padding
    columns = dict(y=y, total=column_total, grad=cotangents.columns) | padding
    start = (jnp.zeros_like(x), jnp.zeros(len(x)))
    (d_x, d_bias), d_y = ring_all_pairs(
        tile_fn, (scale, bias), rows, start, columns, jnp.zeros_like(y), mesh=mesh, tile=tile
    )
    return scale * d_x, scale * d_y, (x * d_x).sum(), d_bias.sum(), None, None


_ring.defvjp(_ring_forward, _ring_backward)


def _accumulate(kind, logits, positive, axis, sums, best_positive, best_negative):
    """Adds a tile to the sums and the largest logits along one axis."""
    old = jnp.maximum(best_positive, best_negative)
    positives, negatives = _best(logits, positive, axis)
    best_positive = jnp.maximum(best_positive, positives)
    best_negative = jnp.maximum(best_negative, negatives)
    best = jnp.maximum(best_positive, best_negative)
    return kind.add(logits, axis, sums, old, best), best_positive, best_negative


def _best(logits, positive, axis):
    """The largest positive's and the largest negative's logit along an axis; -inf for none."""
    logits = lax.stop_gradient(logits)
    best = [jnp.where(which, logits, -jnp.inf).max(axis) for which in (positive, ~positive)]
    return best[0], best[1]


def _correct(best_positive, best_negative):
    return best_positive > best_negative
