"""Contrastive losses over paired embeddings: arrays in, scalar out."""

import jax
import jax.numpy as jnp
import optax


def l2_normalize(x, epsilon: float = 1e-12):
    """x / |x| along the last axis, in float32; a zero vector stays zero, with zero gradient.

    The floor is under the square root: the gradient of a plain norm at zero is NaN, and real
    captions that tokenise to nothing do produce zero vectors. The floor alone would multiply
    their gradient by a million.
    """
    x = x.astype(jnp.float32)
    squared = (x * x).sum(-1, keepdims=True)
    return x * jnp.where(squared > 0, jax.lax.rsqrt(jnp.maximum(squared, epsilon)), 0)


def softmax_contrastive(image, text, temperature, label_smoothing: float = 0.0):
    """Image-to-text plus text-to-image cross entropy over the whole batch.

    ALIGN equations 1 and 2 (arXiv 2102.05918), whose losses are summed; CLIP averages the
    two, which is the same term at weight 1/2. Row i of both inputs is a positive pair.

    image, text: float[N, D], L2-normalised; temperature: float[] that divides the similarities;
    label_smoothing: e, targets are (1 - e) on the pair plus e/N on each of the N.
    Returns (loss: float32[], metrics: dict of float32[], accuracies in 0..1).
    """
    similarities = jnp.matmul(image, text.T, precision="highest", preferred_element_type=jnp.float32)
    logits = similarities / temperature
    labels = jnp.arange(logits.shape[0])
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[0]), label_smoothing)
    image_to_text = optax.softmax_cross_entropy(logits, targets).mean()
    text_to_image = optax.softmax_cross_entropy(logits.T, targets).mean()
    metrics = dict(
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        image_to_text_accuracy=(logits.argmax(1) == labels).mean(),
        text_to_image_accuracy=(logits.argmax(0) == labels).mean(),
    )
    return image_to_text + text_to_image, metrics
