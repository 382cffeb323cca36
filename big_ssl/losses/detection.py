"""The losses of a one-stage detector with centerness, as sums with their counts.

Each loss of ATSS (arXiv 1912.02424) and Dynamic Head is a sum over the anchors of a batch, divided by a sum
over the same anchors: of positives, or of their centerness. The division is the caller's, once, after both
sums have been added up over devices and microbatches. Both are 0 without positives.
"""

import jax
import jax.numpy as jnp
import optax

from big_ssl.losses import boxes as box_lib


def sigmoid_focal_loss(logits, positive, alpha: float = 0.25, gamma: float = 2.0):
    """Focal loss, element by element (Lin et al. 2017, arXiv 1708.02002, equation 5).

    optax's form takes soft targets and stacks its terms along a new last axis of 2, which a TPU pads to 128.

    Args:
      logits: float[...].
      positive: bool[...], broadcast against logits.
      alpha: the weight of positives; negatives have 1 - alpha.
      gamma: the exponent of 1 - p, p the probability of the target.

    Returns:
      float32[...].
    """
    logits = jnp.asarray(logits, jnp.float32)
    signed = jnp.where(positive, logits, -logits)  # the logit of the target
    modulating = jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    return -jnp.where(positive, alpha, 1 - alpha) * modulating * jax.nn.log_sigmoid(signed)


def generalized_iou_loss(predicted, targets):
    """1 - GIoU: float32[...] in 0..2, of boxes float[..., 4]; see boxes.generalized_iou."""
    return 1 - box_lib.generalized_iou(predicted, targets)


def centerness(points, boxes):
    """How central a point is in a box, 1 at the centre, 0 on its sides and outside (FCOS, arXiv 1904.01355,
    equation 3).

    Args:
      points: float[..., 2], (x, y). boxes: float[..., 4]. Unused rows may hold anything finite.

    Returns:
      float32[...], sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of the distances to the sides.
    """
    distances = box_lib.distances_to_sides(points, boxes)
    inside = distances.min(-1) > 0
    distances = jnp.where(inside[..., None], distances, 1)  # before the root, whose gradient at 0 is infinite
    near = jnp.minimum(distances[..., :2], distances[..., 2:])
    far = jnp.maximum(distances[..., :2], distances[..., 2:])
    return jnp.where(inside, jnp.sqrt((near / far).prod(-1)), 0)


def class_loss(logits, labels, alpha: float = 0.25, gamma: float = 2.0):
    """Focal loss of all anchors and classes, and the number of positive anchors.

    Args:
      logits: float[..., A, C].
      labels: int[..., A], the class of each anchor, -1 for background.
      alpha, gamma: see sigmoid_focal_loss.

    Returns:
      (float32[], float32[]), the sum and its count.
    """
    positive = labels[..., None] == jnp.arange(logits.shape[-1])
    return sigmoid_focal_loss(logits, positive, alpha, gamma).sum(), _count(labels >= 0)


def box_loss(predicted, targets, weights):
    """GIoU loss weighted by the targets' centerness, and the sum of the weights.

    Args:
      predicted, targets: float[..., A, 4], boxes in pixels; any finite boxes where the weight is 0.
      weights: float[..., A], the centerness of positive anchors' centres, 0 for the background.

    Returns:
      (float32[], float32[]), the sum and its count.
    """
    weights = jax.lax.stop_gradient(jnp.asarray(weights, jnp.float32))
    return (weights * generalized_iou_loss(predicted, targets)).sum(), weights.sum()


def centerness_loss(logits, targets, positive):
    """Binary cross-entropy of the positive anchors' centerness, and their number.

    Args:
      logits: float[..., A].
      targets: float[..., A] in 0..1, see centerness.
      positive: bool[..., A].

    Returns:
      (float32[], float32[]), the sum and its count.
    """
    losses = optax.sigmoid_binary_cross_entropy(jnp.asarray(logits, jnp.float32), targets)
    return jnp.where(positive, losses, 0).sum(), _count(positive)


def _count(positive):
    return positive.sum(dtype=jnp.float32)
