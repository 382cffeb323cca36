"""Geometry of boxes: overlap, anchors and the coordinates that a head regresses.

A box is (left, top, right, bottom) in pixels, with continuous coordinates: its width is right - left. All
functions compute in float32, broadcast over leading axes, and have finite gradients for empty boxes.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

# Scales of a regressed centre (x, y) and of the logarithm of a size (w, h) (R-CNN, arXiv 1311.2524, with the
# scales of Fast R-CNN's code).
CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# A decoded box is at most this many times as large as its anchor: exp never overflows.
_MAX_LOG_SCALE = float(np.log(1000 / 16))


def box_area(boxes):
    """float32[...] of boxes: float[..., 4]; negative sides count as 0."""
    left, top, right, bottom = _sides(boxes)
    return jnp.maximum(right - left, 0) * jnp.maximum(bottom - top, 0)


def box_iou(boxes, others):
    """Intersection over union: float32[...], 0 where both boxes are empty.

    Args:
      boxes, others: float[..., 4], broadcast; boxes[:, None] and others give all pairs.
    """
    intersection, union = _overlap(boxes, others)
    return _divide(intersection, union)


def generalized_iou(boxes, others):
    """IoU minus the fraction of the smallest enclosing box outside of the union: float32[...] in -1..1.

    Rezatofighi et al. 2019, arXiv 1902.09630, Algorithm 1. Arguments as in box_iou.
    """
    intersection, union = _overlap(boxes, others)
    a, b = jnp.asarray(boxes, jnp.float32), jnp.asarray(others, jnp.float32)
    corners = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    enclosing = box_area(jnp.concatenate(corners, -1))
    return _divide(intersection, union) - _divide(enclosing - union, enclosing)


def distances_to_sides(points, boxes):
    """How far a point lies inside each side of a box: float32[..., 4], (left, top, right, bottom).

    Args:
      points: float[..., 2], (x, y). boxes: float[..., 4]. The smallest of the four is positive inside.
    """
    points, boxes = jnp.asarray(points, jnp.float32), jnp.asarray(boxes, jnp.float32)
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def box_centers(boxes):
    """float32[..., 2], (x, y), of float[..., 4]."""
    boxes = jnp.asarray(boxes, jnp.float32)
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def clip_boxes(boxes, size):
    """Boxes cut to an image: float32[..., 4]; size: (height, width), numbers or arrays of shape [...]."""
    height, width = (jnp.asarray(side, jnp.float32) for side in size)
    limits = jnp.stack([width, height, width, height], -1)
    return jnp.clip(jnp.asarray(boxes, jnp.float32), 0, limits)


def anchor_boxes(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], scale: float = 8.0
) -> tuple[np.ndarray, ...]:
    """One square anchor around the centre of each position of each map.

    Args:
      shapes: (height, width) of each map of a pyramid.
      strides: of each map; the centre of position (y, x) is ((x + 0.5) stride, (y + 0.5) stride).
      scale: an anchor's side in strides: 64 to 1024 pixels for strides 8 to 128.

    Returns:
      For each map float32[height * width, 4], in row-major order.
    """
    anchors = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
        centers = (np.stack([x, y], -1) + 0.5) * stride
        anchors.append(np.concatenate([centers - scale * stride / 2, centers + scale * stride / 2], -1))
    return tuple(anchors)


def encode_boxes(boxes, anchors, weights: Sequence[float] = CODER_WEIGHTS):
    """The inverse of decode_boxes: float32[..., 4] of boxes with positive sides."""
    (x, y, w, h), (ax, ay, aw, ah) = _center_form(boxes), _center_form(anchors)
    deltas = jnp.stack([(x - ax) / aw, (y - ay) / ah, jnp.log(w / aw), jnp.log(h / ah)], -1)
    return deltas * jnp.asarray(weights, jnp.float32)


def decode_boxes(deltas, anchors, weights: Sequence[float] = CODER_WEIGHTS):
    """Boxes that a head regressed from their anchors.

    Args:
      deltas: float[..., 4]: the centre's shift (x, y) in sides of the anchor and the logarithm of the ratio
        of sides (w, h), times weights.
      anchors: float[..., 4].
      weights: four numbers.

    Returns:
      float32[..., 4]; sides are at most 62.5 times the anchor's.
    """
    ax, ay, aw, ah = _center_form(anchors)
    dx, dy, dw, dh = _sides(jnp.asarray(deltas, jnp.float32) / jnp.asarray(weights, jnp.float32))
    x, y = ax + dx * aw, ay + dy * ah
    w, h = (side * jnp.exp(jnp.minimum(d, _MAX_LOG_SCALE)) for side, d in ((aw, dw), (ah, dh)))
    return jnp.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def _sides(boxes):
    return tuple(jnp.moveaxis(jnp.asarray(boxes, jnp.float32), -1, 0))


def _center_form(boxes):
    left, top, right, bottom = _sides(boxes)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _overlap(boxes, others):
    """The areas of intersection and union."""
    a, b = jnp.asarray(boxes, jnp.float32), jnp.asarray(others, jnp.float32)
    corners = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    intersection = box_area(jnp.concatenate(corners, -1))
    return intersection, box_area(a) + box_area(b) - intersection


def _divide(numerator, denominator):
    """0 where the denominator is 0; there the gradient is 0, too."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)
