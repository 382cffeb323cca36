"""From a detector's predictions on all anchors to a fixed number of boxes, under jit."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from big_ssl.losses import boxes as box_lib
from big_ssl.losses.nms import nms


class Rules(NamedTuple):
    """Which boxes are kept, as in ATSS's code.

    threshold: the lowest probability of a class; candidates: of each level, those of the highest scores, the
    probability times centerness; nms_threshold: of boxes of one class that overlap more, the best one stays;
    limit: how many of an image remain.
    """

    threshold: float = 0.05
    candidates: int = 1000
    nms_threshold: float = 0.6
    limit: int = 100


class Boxes(NamedTuple):
    """Of each image `limit` boxes, in the order of their scores. boxes: float32[B, N, 4], in pixels; scores:
    float32[B, N], 0 in unused rows; labels: int32[B, N]."""

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array


def select(predictions: Mapping[str, Sequence], anchors: Sequence, sides, rules: Rules) -> Boxes:
    """Chooses the boxes of a batch of images.

    Args:
      predictions: logits, deltas and centerness, each a tuple of one array for each level, see
        models.dynamic_head.Predictions.
      anchors: for each level float32[h * w, 4].
      sides: float[B, 2], the (height, width) of each image within its padding, to which boxes are clipped.
      rules: see Rules.
    """
    return jax.vmap(lambda image, size: _of_image(image, anchors, size, rules))(dict(predictions), sides)


def _of_image(predictions, anchors, sides, rules):
    parts = [
        _candidates(*level, box_lib.clip_boxes, sides, rules)
        for level in zip(
            predictions["logits"], predictions["deltas"], predictions["centerness"], anchors, strict=True
        )
    ]
    boxes, scores, labels = (jnp.concatenate(part) for part in zip(*parts, strict=True))
    return Boxes(*nms(boxes, scores, labels, rules.nms_threshold, rules.limit))


def _candidates(logits, deltas, centerness, anchors, clip, sides, rules):
    """(boxes [K, 4], scores [K], 0 for those that are none, labels [K]) of one level."""
    classes = logits.shape[-1]
    probabilities = jax.nn.sigmoid(logits.reshape(-1, classes))
    scores = probabilities * jax.nn.sigmoid(centerness.reshape(-1, 1))
    scores = jnp.where(probabilities > rules.threshold, scores, 0).reshape(-1)
    scores, indices = jax.lax.top_k(scores, min(rules.candidates, len(scores)))
    rows = indices // classes
    boxes = clip(box_lib.decode_boxes(deltas.reshape(-1, 4)[rows], jnp.asarray(anchors)[rows]), sides)
    # Boxes in the padding are empty after clipping.
    return boxes, jnp.where(box_lib.box_area(boxes) > 0, scores, 0), indices % classes
