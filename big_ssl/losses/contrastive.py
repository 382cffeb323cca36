"""Contrastive losses over paired embeddings: arrays in, scalar out.

Both losses are a sum over all pairs minus a term that is linear in the similarities of the positive pairs.
losses.pairwise reduces the sum without storing the matrix. The linear term needs no pairs: the sum of x . y
over a set of y is x . (the sum of the set).
"""

import jax
import jax.numpy as jnp

from big_ssl.losses.pairwise import Pairwise


def l2_normalize(x, epsilon: float = 1e-12):
    """x / |x| along the last axis, in float32; a zero vector stays zero, with zero gradient.

    Real captions that tokenise to nothing produce zero vectors, where the gradient of a plain norm is NaN.
    Clamping under the square root avoids that, but alone would multiply their gradient by a million.
    """
    x = x.astype(jnp.float32)
    squared = (x * x).sum(-1, keepdims=True)
    return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.maximum(squared, epsilon)), 0)


def softmax_contrastive(
    image, text, temperature, label_smoothing: float = 0.0, positives=None, pairwise: Pairwise | None = None
):
    """Symmetric cross-entropy over all N x N image-text pairs (ALIGN, arXiv 2102.05918, equations 1 and 2).

    The two directions are summed; CLIP averages them, which is the same loss at weight 1/2.

    Args:
      image, text: float[N, D], L2-normalised.
      temperature: float[], divides the similarities.
      label_smoothing: e; targets are 1 - e on the positives plus e / N on each of the N.
      positives: None pairs image i with text i; int[N], labels, or bool[N, N], images by texts, split a
        row's 1 - e evenly over its positives (UniCL, arXiv 2204.03610, equations 3 and 4). Every row and
        column needs one.
      pairwise: implementation of the pairwise reductions; defaults to the ring on one device.

    Returns:
      (loss: float32[], metrics: dict of float32[], accuracies in 0..1).
    """
    image, text, scale = image.astype(jnp.float32), text.astype(jnp.float32), 1 / temperature
    reduced = (pairwise or Pairwise()).logsumexp(image, text, scale, positives)
    losses = dict(
        image_to_text=reduced.rows.mean()
        - scale * _expected_similarity(image, text, label_smoothing, positives),
        text_to_image=reduced.columns.mean()
        - scale * _expected_similarity(text, image, label_smoothing, _transposed(positives)),
    )
    return losses["image_to_text"] + losses["text_to_image"], losses | _accuracies(reduced)


def sigmoid_contrastive(image, text, temperature, bias, positives=None, pairwise: Pairwise | None = None):
    """SigLIP's loss (arXiv 2303.15343, equation 1): binary cross-entropy of every pair.

    Args:
      image, text, temperature, positives, pairwise: as in softmax_contrastive.
      bias: float[], added to every logit.

    Returns:
      (loss: float32[], the sum over all pairs divided by N, metrics: dict of float32[]).
    """
    image, text, scale = image.astype(jnp.float32), text.astype(jnp.float32), 1 / temperature
    reduced = (pairwise or Pairwise()).softplus(image, text, scale, bias, positives)
    partners, counts = _positive_sum(text, positives)
    # -log sigmoid(l) = softplus(l) - l, so the positives' term is linear.
    linear = scale * (image * partners).sum() + bias * counts.sum()
    return (reduced.rows.sum() - linear) / len(image), _accuracies(reduced)


def _accuracies(reduced):
    return dict(
        image_to_text_accuracy=reduced.row_correct.mean(),
        text_to_image_accuracy=reduced.column_correct.mean(),
    )


def _expected_similarity(x, y, label_smoothing, positives):
    """The similarity expected under each row's targets, averaged over rows: float32[]."""
    partners, counts = _positive_sum(y, positives)
    targets = (1 - label_smoothing) * partners / counts[:, None] + label_smoothing * y.mean(0)
    return (x * targets).sum() / len(x)


def _positive_sum(y, positives):
    """The sum of each row's positives, float32[N, D], and their number, float32[N]."""
    count = len(y)
    if positives is None:
        return y, jnp.ones(count)
    if positives.ndim == 2:
        mask = positives.astype(jnp.float32)
        return jnp.matmul(mask, y, precision="highest"), mask.sum(1)
    _, label = jnp.unique(positives, size=count, return_inverse=True)
    sums, counts = (jax.ops.segment_sum(values, label, num_segments=count) for values in (y, jnp.ones(count)))
    return sums[label], counts[label]


def _transposed(positives):
    return positives.T if positives is not None and positives.ndim == 2 else positives
