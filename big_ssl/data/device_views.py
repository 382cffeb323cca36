"""What happens to a batch of pictures on the device: the host only decodes and crops."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ImageView:
    """Random horizontal flip (training only) and normalisation, (x / 255 - mean) / std.

    mean, std: one value for all channels or one for each.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False

    def __call__(self, images, key=None):
        """images: uint8[..., H, W, 3] -> float32, same shape; key: None in evaluation."""
        if self.flip and key is not None:
            flipped = jax.random.bernoulli(key, 0.5, (*images.shape[:-3], 1, 1, 1))
            images = jnp.where(flipped, images[..., ::-1, :], images)
        scaled = images.astype(jnp.float32) / 255
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)
