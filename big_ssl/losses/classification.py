"""Cross-entropies between a classifier's logits and targets that may be shared by two classes."""

import jax
import jax.numpy as jnp
import optax


def targets(labels, classes: int, label_smoothing: float = 0.0, partners=None, share=None):
    """float32[B, classes]: each row's shares of the classes, which sum to 1.

    labels: int[B]; label_smoothing: e, of which each class has e / classes and the label the rest. Where
    pictures are mixed, share: float[B], the part of a picture that is its own, and partners: int[B], the
    other's label (mixup, arXiv 1710.09412, equation 1; CutMix, arXiv 1905.04899, equation 1).
    """
    own = jax.nn.one_hot(labels, classes)
    if share is not None:
        other = jax.nn.one_hot(partners, classes)
        own = share[:, None] * own + (1 - share[:, None]) * other
    return (1 - label_smoothing) * own + label_smoothing / classes


def softmax_cross_entropy(logits, targets):
    """The mean of -sum t log softmax(l) over all but the last axis: float32[]. Both: [..., C]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def sigmoid_cross_entropy(logits, targets):
    """Each class its own question (Beyer et al. 2020, arXiv 2006.07159, section 6): the sum over classes of
    -t log sigmoid(l) - (1 - t) log sigmoid(-l), averaged over all but the last axis: float32[]."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).sum(-1).mean()


def accuracy(logits, targets):
    """How often the largest logit is that of the class with the largest share: float32[] in 0..1."""
    return (logits.argmax(-1) == targets.argmax(-1)).mean()
