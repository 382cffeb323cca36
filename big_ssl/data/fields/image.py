"""Images: random crops on the host, all other random changes on the device."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.data import augment, crops, mixing
from big_ssl.data.fields.base import Field
from big_ssl.data.masking import BlockMask
from big_ssl.random_keys import named_key


@dataclasses.dataclass(frozen=True)
class Image(Field):
    """uint8[H, W, C], or [n, H, W, C] of n crops; on the device float32, (x / 255 - mean) / std.

    Args:
      crop: the host's transform, see data/crops.py: kind, "random_crop" or "random_resized_crop", and its
        options.
      mean, std: one value for all channels or one for each.
      key: where a record has the encoded image.
      flip: mirror from left to right with probability 1/2, and every field that belongs to the image.
      jitter: strengths of brightness, contrast, saturation and hue, () for none, applied with jitter_prob.
      grayscale_prob: the probability that an image becomes grayscale.
      blur_prob, solarize_prob: a probability for each of the n crops, () for none: DINO's two global crops
        have different ones (arXiv 2104.14294, after BYOL). See data/augment.py.
      mask: options of data.masking.BlockMask, None for no masks of patches.
      mixup, cutmix, mix_group: see data/mixing.py; the last transform.
      downsample: the factor by which images are downsampled, except for high_res calls.
      channels: C; if it is not 3, images are read as they are stored, see data.decode.decode_channels.

    Transforms are applied in this order. Raises ValueError for invalid options.
    """

    crop: Mapping
    mean: Sequence[float]
    std: Sequence[float]
    key: str = "image"
    flip: bool = False
    jitter: Sequence[float] = ()
    jitter_prob: float = 0.8
    grayscale_prob: float = 0.0
    blur_prob: Sequence[float] = ()
    solarize_prob: Sequence[float] = ()
    mask: Mapping | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_group: int = 0
    downsample: int = 1
    channels: int = 3

    counter: ClassVar[str] = "replaced_images"
    load_order: ClassVar[int] = 1

    def __post_init__(self):
        try:
            shape = self.cropper.shape
        except (TypeError, ValueError) as error:
            raise ValueError(f"crop: {error}") from error
        if self.downsample < 1 or shape[-2] % self.downsample:
            raise ValueError(f"downsample is {self.downsample}; it must divide the crop's {shape[-2]} pixels")
        for name in ("blur_prob", "solarize_prob"):
            probs, count = getattr(self, name), len(self._per_crop)
            if probs and len(probs) != count:
                raise ValueError(f"{name} is {tuple(probs)}; it must have a value for each of {count} crops")
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} is {tuple(values)}; it must have one value or {self.channels}")
        if self.channels != 3 and (self.jitter or self.grayscale_prob):
            raise ValueError(f"channels is {self.channels}; jitter and grayscale_prob are for 3")
        if self.mask is not None and len(shape) != 4:
            raise ValueError("mask: it needs crop.kind random_resized_crop")
        _ = self.block_mask

    @functools.cached_property
    def cropper(self) -> crops.Crop:
        """The host's transform."""
        return crops.build(self.crop)

    @functools.cached_property
    def block_mask(self) -> BlockMask | None:
        """The distribution of masks of patches; None for no masks."""
        return None if self.mask is None else BlockMask(**self.mask)

    @property
    def _per_crop(self):
        return range(self.cropper.shape[0] if len(self.cropper.shape) == 4 else 1)

    def device_options(self):
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in options.items() if name not in ("context", "crop", "key")}

    def zeros(self):
        return np.zeros((*self.cropper.shape[:-1], self.channels), np.uint8)

    def load(self, record, draws):
        del record  # decoded once for all image fields of this key
        prepared = draws.prepared[self.context.name]
        geometries = draws.geometries[self.context.name] = self.cropper.draw(prepared, draws.rng)
        return self.cropper.render(prepared, geometries)

    def encoder_inputs(self, value, key, train):
        """See Field. Returns images: float32; mask, if masks are drawn: see BlockMask; in training also
        mix_ratio: float32[B], if images are mixed; and high_res, if they are downsampled."""
        images, inputs = self.transform(value, key if train else None), {}
        if train and self.mixes:
            images, inputs["mix_ratio"] = mixing.mix(
                named_key(key, "mix"), images, self.mixup, self.cutmix, self.mix_group
            )
        if self.downsample > 1:
            inputs["high_res"], images = images, self.downsampled(images)
        if self.block_mask is not None:
            inputs["mask"] = self.block_mask(named_key(key, "mask"), *value.shape[:2])
        return inputs | dict(images=images)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed in training."""
        return bool(self.mixup or self.cutmix)

    def flips(self, key, shape: tuple[int, ...]):
        """bool[shape]: which images `transform` mirrors under this key; None if it mirrors none."""
        return jax.random.bernoulli(key, 0.5, shape) if self.flip else None

    def transform(self, images, key=None):
        """uint8[B, H, W, C] or [B, n, H, W, C] -> float32 of the same shape; key None changes nothing."""
        x = images.astype(jnp.float32) / 255
        if key is not None:
            x = self._changed(x, key)
        return (x - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def downsampled(self, x):
        """float32[..., H, W, C] -> [..., H / downsample, W / downsample, C], bicubic and antialiased."""
        *leading, height, width, channels = x.shape
        shape = (*leading, height // self.downsample, width // self.downsample, channels)
        return jax.image.resize(x, shape, "cubic", antialias=True)

    def _changed(self, x, key):
        # The flip uses the field's key unsplit, so that its boxes and masks can draw the same flips.
        flips = self.flips(key, x.shape[:-3])
        if flips is not None:
            x = jnp.where(flips[..., None, None, None], x[..., ::-1, :], x)
        shape, keys = x.shape, jax.random.split(key, 4)
        x = x.reshape(-1, *shape[-3:])
        if self.jitter:
            x = augment.color_jitter(keys[0], x, self.jitter, self.jitter_prob)
        if self.grayscale_prob:
            x = augment.random_grayscale(keys[1], x, self.grayscale_prob)
        if self.blur_prob:
            x = augment.random_blur(keys[2], x, _crop_probs(self.blur_prob, shape[:-3]))
        if self.solarize_prob:
            x = augment.random_solarize(keys[3], x, _crop_probs(self.solarize_prob, shape[:-3]))
        return x.reshape(shape)


def _crop_probs(probs, shape):
    """float[B * n]: each crop's probability."""
    return jnp.broadcast_to(jnp.asarray(probs), shape).ravel()
