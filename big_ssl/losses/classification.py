"""Cross-entropies between a classifier's logits and soft targets."""

import jax
import jax.numpy as jnp
import optax


def targets(labels, classes: int, label_smoothing: float = 0.0, partners=None, mix_ratio=None):
    """Target distributions, with label smoothing and mixup or CutMix (arXiv 1710.09412, 1905.04899).

    Args:
      labels: int[B].
      classes: C.
      label_smoothing: e; every class gets e / C, the label the remaining 1 - e.
      partners: int[B], the labels of the images mixed in; None without mixing.
      mix_ratio: float[B], the weight of the row's own label; its partner's label gets 1 - mix_ratio.

    Returns:
      float32[B, C], rows that sum to 1.
    """
    one_hot = jax.nn.one_hot(labels, classes)
    if mix_ratio is not None:
        mixed_in = jax.nn.one_hot(partners, classes)
        one_hot = mix_ratio[:, None] * one_hot + (1 - mix_ratio[:, None]) * mixed_in
    return (1 - label_smoothing) * one_hot + label_smoothing / classes


def softmax_cross_entropy(logits, targets):
    """The mean of -sum t log softmax(l) over all but the last axis: float32[]. Both: [..., C]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def sigmoid_cross_entropy(logits, targets):
    """Binary cross-entropy, summed over classes (Beyer et al. 2020, arXiv 2006.07159, section 6).

    The sum over classes of -t log sigmoid(l) - (1 - t) log sigmoid(-l), averaged over all but the last axis:
    float32[]. Both: [..., C].
    """
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).sum(-1).mean()


def accuracy(logits, targets):
    """The fraction of rows whose largest logit is the class with the largest target: float32[] in 0..1."""
    return (logits.argmax(-1) == targets.argmax(-1)).mean()
