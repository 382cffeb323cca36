"""Colour jitter, blur and solarisation of a batch of images on the device: float32[N, H, W, 3] in [0, 1].

As torchvision's transforms define them on tensors, with independent random numbers per image.
"""

import jax
import jax.numpy as jnp

# ITU-R 601 luma, rounded as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)
# DINOv2's kernel has 9 taps.
_BLUR_RADIUS = 4
_BLUR_SIGMA = (0.1, 2.0)


def color_jitter(key, x, strengths, probability: float):
    """Changes brightness, contrast, saturation and hue of random images.

    A factor is uniform in [1 - s, 1 + s], the hue's shift in [-s, s]. The four changes come in random order,
    the same for the batch: a branch for each image would compute all four at each position.

    Args:
      key: random key.
      x: float32[N, H, W, 3].
      strengths: s of brightness, contrast, saturation and hue.
      probability: of an image to be changed.
    """
    apply_key, order_key, *keys = jax.random.split(key, 6)
    factors = [_uniform(k, x, -s, s) for k, s in zip(keys, strengths, strict=True)]
    changes = [
        lambda x: _clip(x * (1 + factors[0])),
        lambda x: _blend(x, grayscale(x).mean((1, 2), keepdims=True), factors[1]),
        lambda x: _blend(x, grayscale(x), factors[2]),
        lambda x: adjust_hue(x, factors[3]),
    ]
    order = jax.random.permutation(order_key, len(changes))
    changed = jax.lax.fori_loop(0, len(changes), lambda i, x: jax.lax.switch(order[i], changes, x), x)
    return _random_apply(apply_key, changed, x, probability)


def random_grayscale(key, x, probability: float):
    """Converts each image to grayscale with this probability."""
    return _random_apply(key, jnp.broadcast_to(grayscale(x), x.shape), x, probability)


def random_blur(key, x, probability):
    """Blurs random images, sigma uniform in [0.1, 2] pixels. probability: float, or float[N] per image."""
    apply_key, sigma_key = jax.random.split(key)
    return _random_apply(apply_key, blur(x, _uniform(sigma_key, x, *_BLUR_SIGMA)), x, probability)


def random_solarize(key, x, probability):
    """Inverts pixels of at least 0.5 in random images. probability: float, or float[N] per image."""
    return _random_apply(key, jnp.where(x >= 0.5, 1 - x, x), x, probability)


def grayscale(x):
    """[..., 3] -> [..., 1]."""
    return (x * jnp.asarray(_LUMA)).sum(-1, keepdims=True)


def adjust_hue(x, turn):
    """Shifts the hue by turn: float[N, 1, 1, 1], in turns of the colour circle; value and saturation stay."""
    value, chroma = x.max(-1), x.max(-1) - x.min(-1)
    red, green, blue = (x[..., i] for i in range(3))
    safe = jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = jnp.where(chroma > 0, hue, 0)[..., None] + 6 * turn
    # Each channel falls from the value by the chroma over its segment of the circle.
    k = (jnp.asarray([5.0, 3.0, 1.0]) + hue) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def blur(x, sigma):
    """Gaussian blur of 9 x 9 taps, mirrored at the edges; sigma: float[N, 1, 1, 1], in pixels."""
    taps = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    weights = jnp.exp(-0.5 * (taps / sigma) ** 2)
    weights /= weights.sum(-1, keepdims=True)
    for axis in (1, 2):
        pads = [(0, 0)] * x.ndim
        pads[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
        padded, size = jnp.pad(x, pads, mode="reflect"), x.shape[axis]
        x = sum(
            jax.lax.slice_in_dim(padded, i, i + size, axis=axis) * weights[..., i : i + 1]
            for i in range(len(taps))
        )
    return x


def _blend(x, other, factor):
    """other + (1 + factor) * (x - other), within [0, 1]."""
    return _clip(x + factor * (x - other))


def _clip(x):
    return jnp.clip(x, 0, 1)


def _uniform(key, x, low, high):
    return jax.random.uniform(key, (len(x), 1, 1, 1), minval=low, maxval=high)


def _random_apply(key, changed, x, probability):
    chosen = jax.random.uniform(key, (len(x),)) < probability
    return jnp.where(chosen[:, None, None, None], changed, x)
