"""Adaptive training sample selection: which anchors learn which box (Zhang et al. 2020, arXiv 1912.02424,
Algorithm 1)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from big_ssl.losses import boxes as box_lib
from big_ssl.losses.detection import centerness

# A positive anchor's centre lies at least so many pixels inside its box, as in the authors' code.
_MARGIN = 0.01
# Where all candidates have one IoU (a small box inside all of them), it is the threshold: rounding of the
# mean must not make them background.
_TOLERANCE = 1e-6


class Targets(NamedTuple):
    """What each anchor learns.

    labels: int32[A], the class, -1 for background; boxes: float32[A, 4]; centerness: float32[A], of the
    anchor's centre in its box. Boxes and centerness of the background are 0.
    """

    labels: jax.Array
    boxes: jax.Array
    centerness: jax.Array


def targets(anchors: Sequence, boxes, labels, valid, candidates: int = 9) -> Targets:
    """The targets of one image's anchors, those of all levels in one axis; jax.vmap adds the batch.

    Args:
      anchors: for each level float32[A_l, 4], see boxes.anchor_boxes.
      boxes: float32[M, 4], in pixels, padded.
      labels: int32[M].
      valid: bool[M], False for padding, and for boxes that are no targets, such as crowds.
      candidates: see assign.
    """
    matched = assign(anchors, boxes, valid, candidates)
    positive = matched >= 0
    chosen = jnp.where(positive[:, None], jnp.asarray(boxes, jnp.float32)[matched], 0)
    centers = box_lib.box_centers(jnp.concatenate(anchors))
    return Targets(jnp.where(positive, labels[matched], -1), chosen, centerness(centers, chosen) * positive)


def assign(anchors: Sequence, boxes, valid, candidates: int = 9):
    """The box of each positive anchor.

    Each level proposes the anchors whose centres are nearest to the box's, of equally near ones the first.
    Positive are those whose IoU with the box is at least the mean plus the standard deviation (of a sample:
    divided by one less) over its candidates, and whose centre is inside. Of several boxes, an anchor gets the
    one of the largest IoU, of equals the first.

    Args:
      anchors: for each level float32[A_l, 4].
      boxes: float32[M, 4]; rows that are not valid may hold anything finite.
      valid: bool[M].
      candidates: k of each level, or all anchors of a level that has fewer.

    Returns:
      int32[A], the row of `boxes`, -1 for background, A the sum of A_l.
    """
    anchors = [jnp.asarray(level, jnp.float32) for level in anchors]
    boxes = jnp.asarray(boxes, jnp.float32)
    indices = _candidates(anchors, boxes, candidates)
    everything = jnp.concatenate(anchors)
    chosen = everything[indices]  # [M, K, 4]
    ious = box_lib.box_iou(chosen, boxes[:, None])
    threshold = ious.mean(1) + ious.std(1, ddof=min(1, ious.shape[1] - 1))
    inside = box_lib.distances_to_sides(box_lib.box_centers(chosen), boxes[:, None]).min(-1) > _MARGIN
    positive = (ious >= threshold[:, None] - _TOLERANCE) & inside & valid[:, None]
    return _largest(indices, jnp.where(positive, ious, -1), len(everything))


def _candidates(anchors, boxes, count):
    """int32[M, K]: the nearest anchors of every level, as indices into all of them."""
    start, parts = 0, []
    for level in anchors:
        offsets = box_lib.box_centers(level) - box_lib.box_centers(boxes)[:, None]
        distances = (offsets**2).sum(-1)
        nearest = jax.lax.top_k(-distances, min(count, len(level)))[1]
        parts.append(nearest + start)
        start += len(level)
    return jnp.concatenate(parts, 1)


def _largest(indices, ious, count):
    """int32[count]: for each anchor the first row with its largest IoU, -1 if all are negative.

    indices, ious: [M, K], the anchors of each row and their IoUs, negative where an anchor is not positive.
    """
    best = jnp.full(count, -1.0).at[indices].max(ious)
    rows = jnp.broadcast_to(jnp.arange(len(indices))[:, None], indices.shape)
    winners = jnp.where((ious >= 0) & (ious == best[indices]), rows, len(indices))
    first = jnp.full(count, len(indices)).at[indices].min(winners)
    return jnp.where(first < len(indices), first, -1).astype(jnp.int32)
