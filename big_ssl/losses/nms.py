"""Greedy non-maximum suppression with static shapes, for jit."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from big_ssl.losses import boxes as box_lib


def nms(boxes, scores, labels, iou_threshold: float, limit: int):
    """The best boxes of one image of which none overlaps a better one of its class; jax.vmap adds the batch.

    The best box that is left is kept, and those of its class that overlap it by more than the threshold are
    dropped, `limit` times: the first boxes of those that a loop over all K would keep, in K * limit steps
    instead of K * K. Of equal scores the lower index is the better one. Overlaps are computed in float32,
    without moving the classes apart, which rounds coordinates; float32's 3/5 is above a threshold of 0.6, as
    in torchvision.

    Args:
      boxes: float[K, 4], (left, top, right, bottom).
      scores: float[K], 0 in rows without a box.
      labels: int[K], their classes.
      iou_threshold: in 0..1.
      limit: N, the rows of the result.

    Returns:
      float32[N, 4], float32[N] and int32[N], by falling score; unused rows have a box of zeros, the score 0
      and the label -1.
    """
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    labels = jnp.asarray(labels, jnp.int32)
    threshold = _rounded_down(iou_threshold)

    def keep_best(left, _):
        best = left.argmax()  # the first of equals
        overlaps = (box_lib.box_iou(boxes[best], boxes) > threshold) & (labels == labels[best])
        return jnp.where(overlaps.at[best].set(True), 0, left), (best, left[best])

    _, (rows, scores) = lax.scan(keep_best, scores, length=limit)
    used = scores > 0
    return jnp.where(used[:, None], boxes[rows], 0), scores, jnp.where(used, labels[rows], -1)


def _rounded_down(threshold):
    """The largest float32 that is not above a number: for float32, x > the one is x > the other."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1))
