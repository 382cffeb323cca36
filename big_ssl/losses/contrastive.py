"""Contrastive losses over paired embeddings: arrays in, scalar out.

Both losses are a sum over all pairs, which losses.pairwise reduces without writing it down, less
a part that is linear in the similarities of the positive pairs. That part needs no pairs at all:
the sum of x . y over a set of y is x . (the sum of the set).
"""

import jax
import jax.numpy as jnp

from big_ssl.losses.pairwise import Pairwise


def l2_normalize(x, epsilon: float = 1e-12):
    """x / |x| along the last axis, in float32; a zero vector stays zero, with zero gradient.

    The floor is under the square root: the gradient of a plain norm at zero is NaN, and real
    captions that tokenise to nothing do produce zero vectors. The floor alone would multiply
    their gradient by a million.
    """
    x = x.astype(jnp.float32)
    squared = (x * x).sum(-1, keepdims=True)
    return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.maximum(squared, epsilon)), 0)


def softmax_contrastive(
    image, text, temperature, label_smoothing: float = 0.0, positives=None, pairwise: Pairwise | None = None
):
    """Image-to-text plus text-to-image cross entropy over the whole batch.

    ALIGN equations 1 and 2 (arXiv 2102.05918), whose losses are summed; CLIP averages the
    two, which is the same term at weight 1/2.

    image, text: float[N, D], L2-normalised; temperature: float[] that divides the similarities;
    label_smoothing: e, targets are (1 - e) on the positives plus e/N on each of the N.
    positives: None, image i with text i; int[N] labels or bool[N, N], images by texts, a row's
      (1 - e) then shared evenly by its positives, of which each row and column needs one (UniCL,
      arXiv 2204.03610, equations 3 and 4).
    pairwise: how the pairs are gone through; the ring on one device if not given.
    Returns (loss: float32[], metrics: dict of float32[], accuracies in 0..1).
    """
    image, text, scale = image.astype(jnp.float32), text.astype(jnp.float32), 1 / temperature
    found = (pairwise or Pairwise()).logsumexp(image, text, scale, positives)
    losses = dict(
        image_to_text=found.rows.mean() - scale * _agreement(image, text, label_smoothing, positives),
        text_to_image=found.columns.mean()
        - scale * _agreement(text, image, label_smoothing, _transposed(positives)),
    )
    return losses["image_to_text"] + losses["text_to_image"], losses | _accuracies(found)


def sigmoid_contrastive(image, text, temperature, bias, positives=None, pairwise: Pairwise | None = None):
    """SigLIP's loss (arXiv 2303.15343, equation 1): every pair is a yes-or-no question.

    The sum over all pairs, divided by N, not by its square. bias: float[], added to every logit.
    Other arguments and the returned pair as in softmax_contrastive.
    """
    image, text, scale = image.astype(jnp.float32), text.astype(jnp.float32), 1 / temperature
    found = (pairwise or Pairwise()).softplus(image, text, scale, bias, positives)
    partners, counts = _positive_sum(text, positives)
    # -log sigmoid(l) = softplus(l) - l, so the positives' share is linear.
    linear = scale * (image * partners).sum() + bias * counts.sum()
    return (found.rows.sum() - linear) / len(image), _accuracies(found)


def _accuracies(found):
    return dict(
        image_to_text_accuracy=found.row_correct.mean(),
        text_to_image_accuracy=found.column_correct.mean(),
    )


def _agreement(x, y, label_smoothing, positives):
    """The mean over rows of the expected similarity under the row's targets."""
    partners, counts = _positive_sum(y, positives)
    targets = (1 - label_smoothing) * partners / counts[:, None] + label_smoothing * y.mean(0)
    return (x * targets).sum() / len(x)


def _positive_sum(y, positives):
    """The sum of each row's positive partners, float32[N, D], and how many they are, float32[N]."""
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
