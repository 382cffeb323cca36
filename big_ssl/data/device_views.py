"""What happens to a batch of pictures on the device: the host only decodes and crops."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from big_ssl.data import augment, mixing


@dataclasses.dataclass(frozen=True)
class ImageView:
    """In training random changes, in this order; then normalisation, (x / 255 - mean) / std.

    mean, std: one value for all channels or one for each. flip: mirrored with the chance 1/2.
    jitter: strengths of brightness, contrast, saturation and hue, () for none; jitter_chance, grey_chance:
    of a picture to be changed; blur_chance, solarise_chance: the same for each of a view's crops, () for
    none, as those of DINO's two global crops differ (arXiv 2104.14294, after BYOL). See data/augment.py.
    mixup, cutmix, mix_group: last of all, what is made of two pictures, by `mix`; see data/mixing.py.
    shrink: how many times smaller encoders see them, but for passes that want them large; see `shrunk`.
    """

    mean: Sequence[float]
    std: Sequence[float]
    flip: bool = False
    jitter: Sequence[float] = ()
    jitter_chance: float = 0.8
    grey_chance: float = 0.0
    blur_chance: Sequence[float] = ()
    solarise_chance: Sequence[float] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_group: int = 0
    shrink: int = 1

    def __call__(self, images, key=None):
        """images: uint8[B, H, W, 3], or crops [B, n, H, W, 3] -> float32, same shape; key: None in
        evaluation. Raises ValueError where the chances are not those of n crops."""
        x = images.astype(jnp.float32) / 255
        if key is not None:
            x = self._changed(x, key)
        return (x - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    @property
    def mixes(self) -> bool:
        """Whether there is anything for `mix` to do in training."""
        return bool(self.mixup or self.cutmix)

    def mix(self, x, key):
        """What `__call__` gives -> (mixed, share: float32[B]); see data.mixing.mix."""
        return mixing.mix(key, x, self.mixup, self.cutmix, self.mix_group)

    def shrunk(self, x):
        """float32[..., H, W, 3] -> [..., H / shrink, W / shrink, 3], bicubic and antialiased.

        Raises ValueError where shrink does not divide the size."""
        *rest, height, width, channels = x.shape
        if height % self.shrink or width % self.shrink:
            raise ValueError(f"views: shrink is {self.shrink}, but pictures have {height} x {width} pixels")
        shape = (*rest, height // self.shrink, width // self.shrink, channels)
        return jax.image.resize(x, shape, "cubic", antialias=True)

    def _changed(self, x, key):
        # The flip alone has the view's own key, as before there was anything else.
        if self.flip:
            flipped = jax.random.bernoulli(key, 0.5, (*x.shape[:-3], 1, 1, 1))
            x = jnp.where(flipped, x[..., ::-1, :], x)
        shape, keys = x.shape, jax.random.split(key, 4)
        crops = shape[:-3]
        x = x.reshape(-1, *shape[-3:])
        if self.jitter:
            x = augment.colour_jitter(keys[0], x, self.jitter, self.jitter_chance)
        if self.grey_chance:
            x = augment.random_grey(keys[1], x, self.grey_chance)
        if self.blur_chance:
            x = augment.random_blur(keys[2], x, _for_each(self.blur_chance, crops, "blur_chance"))
        if self.solarise_chance:
            chance = _for_each(self.solarise_chance, crops, "solarise_chance")
            x = augment.random_solarise(keys[3], x, chance)
        return x.reshape(shape)


def _for_each(chances, crops, name):
    """float[B * n]: each crop's chance."""
    if len(chances) != (crops[1] if len(crops) == 2 else 1):
        raise ValueError(f"views: {name} is {tuple(chances)}, one for each crop, but there are {crops[1:]}")
    return jnp.broadcast_to(jnp.asarray(chances), crops).ravel()
