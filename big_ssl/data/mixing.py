"""Images of a batch mixed with their neighbours on the device: mixup and CutMix."""

import jax
import jax.numpy as jnp


def partners(x):
    """x: [B, ...] with neighbours exchanged: row 0 and row 1, row 2 and row 3, ...

    Batches are shuffled, so a neighbour is a random partner; and if a batch is split evenly over devices, no
    example leaves its device.
    """
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mix(key, x, mixup: float, cutmix: float, mix_group: int):
    """Mixes images with their partners.

    Mixup is lam * image + (1 - lam) * partner (Zhang et al. 2018, arXiv 1710.09412). CutMix pastes a box with
    the image's aspect ratio, centred at a random point and clipped; lam is recomputed from the clipped area
    (Yun et al. 2019, arXiv 1905.04899).

    Args:
      key: random key.
      x: float32[B, ..., H, W, 3].
      mixup, cutmix: the parameter of Beta(a, a) from which lam is drawn, 0 for never; if both are set, each
        is used with probability 1/2.
      mix_group: images in one group of this many neighbours share lam, 0 for the whole batch, as in timm,
        whose batch is that of one GPU.

    Returns:
      (the mixed images, lam: float32[B]).

    Raises:
      ValueError: if groups or pairs do not divide the batch.
    """
    size = mix_group or len(x)
    if size % 2 or len(x) % size:
        raise ValueError(f"mix_group is {mix_group}; it must be even, and divide a batch of {len(x)}")
    draw = jax.vmap(lambda key: _image_weights(key, x.shape[-3:-1], mixup, cutmix))
    weights = jnp.repeat(draw(jax.random.split(key, len(x) // size)), size, axis=0)
    lam = weights.mean((1, 2))
    weights = weights.reshape(len(x), *(1,) * (x.ndim - 4), *weights.shape[1:], 1)
    return weights * x + (1 - weights) * partners(x), lam


def _image_weights(key, sides, mixup, cutmix):
    """float32[H, W]: the weight of the image's pixels; the partner's have 1 minus it."""
    choice, draw, place = jax.random.split(key, 3)
    cuts = jax.random.bernoulli(choice) if mixup and cutmix else bool(cutmix)
    parameter = jnp.where(cuts, cutmix, mixup)
    lam = jax.random.beta(draw, parameter, parameter)
    return jnp.where(cuts, 1 - _pasted_box(place, sides, lam), lam)


def _pasted_box(key, sides, lam):
    """float32[H, W], 1 within a box of area 1 - lam, clipped at the edges."""
    inside = jnp.ones(())
    for axis, (side, axis_key) in enumerate(zip(sides, jax.random.split(key), strict=True)):
        half = (side * jnp.sqrt(1 - lam)).astype(int) // 2
        place = jnp.arange(side) - jax.random.randint(axis_key, (), 0, side)
        within = (place >= -half) & (place < half)
        inside = inside * jnp.expand_dims(within.astype(jnp.float32), 1 - axis)
    return inside
