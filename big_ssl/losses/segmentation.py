"""Semantic segmentation: sums over pixels with a class."""

import jax.numpy as jnp
import optax


def pixel_sums(logits, classes, valid):
    """Cross-entropy and right predictions, summed over valid pixels.

    Args:
      logits: float32[..., C].
      classes: int[...]; where it is not valid, any number.
      valid: bool[...].

    Returns:
      (the summed cross-entropy, how many valid pixels have their largest logit at their class, how many are
      valid): float32[] each.
    """
    classes = jnp.where(valid, classes, 0).astype(jnp.int32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    right = (logits.argmax(-1) == classes) & valid
    return jnp.where(valid, loss, 0.0).sum(), right.sum(dtype=jnp.float32), valid.sum(dtype=jnp.float32)
