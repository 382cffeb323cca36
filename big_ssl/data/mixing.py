"""Pictures of a batch mixed with their neighbours on the device: mixup and CutMix."""

import jax
import jax.numpy as jnp


def partners(x):
    """x: [B, ...] with the two of each pair of neighbours exchanged: row 0 and row 1, row 2 and row 3, ...

    Batches are shuffled, so a neighbour is as random as any; and of a batch that is split evenly over
    devices no example leaves its own.
    """
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mix(key, x, mixup: float, cutmix: float, group: int):
    """(x mixed with its partners, share: float32[B], how much of each row is still its own).

    x: float32[B, ..., H, W, 3]. mixup, cutmix: the parameter of Beta(a, a) from which a share is drawn, 0
    for never; where there are both, each is used with the chance 1/2. A mixup is share * own +
    (1 - share) * other (Zhang et al. 2018, arXiv 1710.09412); a CutMix a window of the other's, of the
    picture's aspect, around a random point and cut at the edges, the share then what is left (Yun et al.
    2019, arXiv 1905.04899). group: so many neighbours are mixed alike, 0 for the whole batch, as in timm,
    whose batch is that of one GPU. Raises ValueError where groups or pairs do not divide the batch.
    """
    size = group or len(x)
    if size % 2 or len(x) % size:
        raise ValueError(f"views: mix_group is {group}; it must be even, and divide a batch of {len(x)}")
    draw = jax.vmap(lambda key: _own_part(key, x.shape[-3:-1], mixup, cutmix))
    own = jnp.repeat(draw(jax.random.split(key, len(x) // size)), size, axis=0)
    share = own.mean((1, 2))
    own = own.reshape(len(x), *(1,) * (x.ndim - 4), *own.shape[1:], 1)
    return own * x + (1 - own) * partners(x), share


def _own_part(key, sides, mixup, cutmix):
    """float32[H, W]: how much of each pixel stays."""
    choice, draw, place = jax.random.split(key, 3)
    cuts = jax.random.bernoulli(choice) if mixup and cutmix else bool(cutmix)
    parameter = jnp.where(cuts, cutmix, mixup)
    share = jax.random.beta(draw, parameter, parameter)
    return jnp.where(cuts, 1 - _window(place, sides, share), share)


def _window(key, sides, share):
    """float32[H, W], 1 within a window of 1 - share of the area, less what the edges cut off."""
    inside = jnp.ones(())
    for axis, (side, own) in enumerate(zip(sides, jax.random.split(key), strict=True)):
        half = (side * jnp.sqrt(1 - share)).astype(int) // 2
        place = jnp.arange(side) - jax.random.randint(own, (), 0, side)
        within = (place >= -half) & (place < half)
        inside = inside * jnp.expand_dims(within.astype(jnp.float32), 1 - axis)
    return inside
