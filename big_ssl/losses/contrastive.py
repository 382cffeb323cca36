"""Contrastive losses over paired embeddings: arrays in, scalar out.

Both losses are a sum over all pairs minus a term that is linear in the similarities of the positive pairs.
losses.pairwise reduces the sum without storing the matrix. The linear term needs no pairs: the sum of x . y
over a set of y is x . (the sum of the set).
"""

import jax
import jax.numpy as jnp

from big_ssl.losses.pairwise import Pairwise, is_mask


def l2_normalize(x, epsilon: float = 1e-12):
    """x / |x| along the last axis, in float32; a zero vector stays zero, with zero gradient.

    Real captions that tokenise to nothing produce zero vectors, where the gradient of a plain norm is NaN.
    Clamping under the square root avoids that, but alone would multiply their gradient by a million.
    """
    x = x.astype(jnp.float32)
    squared = (x * x).sum(-1, keepdims=True)
    return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.maximum(squared, epsilon)), 0)


def softmax_contrastive(
    image,
    text,
    temperature,
    label_smoothing: float = 0.0,
    positives=None,
    pairwise: Pairwise | None = None,
    valid=None,
):
    """Symmetric cross-entropy over all N x N image-text pairs (ALIGN, arXiv 2102.05918, equations 1 and 2).

    The two directions are summed; CLIP averages them, which is the same loss at weight 1/2.

    Args:
      image, text: float[N, D], L2-normalised.
      temperature: float[], divides the similarities.
      label_smoothing: e; targets are 1 - e on the positives plus e / N on each of the N.
      positives: None pairs image i with text i; int[N] or int[N, lanes], labels, or bool[N, N], images by
        texts, split a row's 1 - e evenly over its positives (UniCL, arXiv 2204.03610, equations 3 and 4), and
        a column's over the column's positives. Every row and column needs one.
      pairwise: implementation of the pairwise reductions; defaults to the ring on one device.
      valid: bool[N], False for padding, which is no example, no positive and no negative; None for none.

    Returns:
      (loss: float32[], metrics: dict of float32[]: the loss of each direction, accuracies in 0..1 and, with
      positives, the lower bound of the loss: a row of n positives contributes at least log n).
    """
    image, text, valid = _without_padding(image, text, valid)
    scale = 1 / temperature
    reduced = (pairwise or Pairwise()).logsumexp(image, text, scale, positives, valid)
    losses, bound = {}, jnp.zeros(())
    for name, queries, keys, log_normalizers, query_positives in (
        ("image_to_text", image, text, reduced.rows, positives),
        ("text_to_image", text, image, reduced.columns, _transposed(positives)),
    ):
        positive_sums, counts = _positive_sum(keys, query_positives, valid)
        expected = _expected_similarity(queries, keys, positive_sums, counts, label_smoothing, valid)
        losses[name] = _mean(log_normalizers, valid) - scale * expected
        bound += _mean(jnp.log(counts), valid)
    metrics = losses | _accuracies(reduced, valid)
    metrics |= {} if positives is None else dict(lower_bound=bound)
    return losses["image_to_text"] + losses["text_to_image"], metrics


def sigmoid_contrastive(
    image, text, temperature, bias, positives=None, pairwise: Pairwise | None = None, valid=None
):
    """SigLIP's loss (arXiv 2303.15343, equation 1): binary cross-entropy of every pair.

    Args:
      image, text, temperature, positives, pairwise, valid: as in softmax_contrastive.
      bias: float[], added to every logit.

    Returns:
      (loss: float32[], the sum over all pairs divided by N, metrics: dict of float32[]).
    """
    image, text, valid = _without_padding(image, text, valid)
    scale = 1 / temperature
    reduced = (pairwise or Pairwise()).softplus(image, text, scale, bias, positives, valid)
    positive_sums, counts = _positive_sum(text, positives, valid)
    # -log sigmoid(l) = softplus(l) - l, so the positives' term is linear.
    linear = scale * (image * positive_sums).sum() + bias * _sum(counts, valid)
    return (_sum(reduced.rows, valid) - linear) / _count(image, valid), _accuracies(reduced, valid)


def _without_padding(image, text, valid):
    """float32 embeddings, zeros for padding, which then adds nothing to any sum; and valid."""
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    if valid is None:
        return image, text, None
    return *(jnp.where(valid[:, None], x, 0) for x in (image, text)), valid


def _count(x, valid):
    """The number of rows that are no padding, at least 1."""
    return len(x) if valid is None else jnp.maximum(valid.sum(), 1)


def _sum(x, valid):
    return (x if valid is None else jnp.where(valid, x, 0)).sum()


def _mean(x, valid):
    return x.mean() if valid is None else _sum(x, valid) / _count(x, valid)


def _accuracies(reduced, valid):
    return dict(
        image_to_text_accuracy=_mean(reduced.row_correct.astype(jnp.float32), valid),
        text_to_image_accuracy=_mean(reduced.column_correct.astype(jnp.float32), valid),
    )


def _expected_similarity(queries, keys, positive_sums, counts, label_smoothing, valid):
    """The similarity expected under each query's targets, averaged over queries: float32[]."""
    count = _count(queries, valid)
    smoothing = label_smoothing * (keys.sum(0) / count)
    targets = (1 - label_smoothing) * positive_sums / counts[:, None] + smoothing
    return (queries * targets).sum() / count


def _positive_sum(y, positives, valid):
    """The sum of each row's positives, float32[N, D], and their number, float32[N].

    Padding is zeros in y; for rows of padding the number is 1.
    """
    count = len(y)
    if positives is None:
        return y, jnp.ones(count)
    present = jnp.ones(count) if valid is None else valid.astype(jnp.float32)
    if is_mask(positives):
        mask = positives.astype(jnp.float32)
        sums, counts = (jnp.matmul(mask, x, precision="highest") for x in (y, present))
    else:
        _, label = jnp.unique(positives, axis=0, size=count, return_inverse=True)
        label = label.ravel()
        sums, counts = (jax.ops.segment_sum(x, label, num_segments=count)[label] for x in (y, present))
    return sums, counts if valid is None else jnp.where(valid, counts, 1)


def _transposed(positives):
    return positives.T if is_mask(positives) else positives
