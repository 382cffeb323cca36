"""The contrastive losses as their papers print them, over the whole matrix of similarities.

Read these first: they define what losses.contrastive computes, and its tests compare the two. Training uses
losses.contrastive, which needs no N x N matrix, splits over devices and takes labels, masks and smoothing.
"""

import jax
import jax.numpy as jnp
import optax


def clip_loss(image, text, temperature):
    """The mean of both directions' cross entropy: CLIP (arXiv 2103.00020), figure 3.

    image, text: float[N, D], L2-normalised, where row i of one belongs to row i of the other; temperature:
    float[]. Returns float[], half of softmax_contrastive, which is ALIGN's sum.
    """
    logits = image @ text.T / temperature
    labels = jnp.arange(len(image))
    image_to_text = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    text_to_image = optax.softmax_cross_entropy_with_integer_labels(logits.T, labels).mean()
    return (image_to_text + text_to_image) / 2


def unicl_loss(image, text, temperature, labels):
    """CLIP's loss with all pairs of equal label as positives: UniCL (arXiv 2204.03610), equations 2 to 4.

    Arguments as in clip_loss; labels: int[N]. Returns float[], half of softmax_contrastive with these
    positives. A row with n positives contributes at least log n.
    """
    logits = image @ text.T / temperature
    positive = labels[:, None] == labels[None, :]  # symmetric, so rows and columns have equal targets
    targets = positive / positive.sum(1, keepdims=True)
    image_to_text = optax.softmax_cross_entropy(logits, targets).mean()
    text_to_image = optax.softmax_cross_entropy(logits.T, targets).mean()
    return (image_to_text + text_to_image) / 2


def siglip_loss(image, text, temperature, bias):
    """The binary cross entropy of all pairs, summed and divided by N: SigLIP (arXiv 2303.15343), equation 1.

    Arguments as in clip_loss; bias: float[]. Returns float[], equal to sigmoid_contrastive.
    """
    logits = image @ text.T / temperature + bias
    signs = 2 * jnp.eye(len(image)) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(image)
