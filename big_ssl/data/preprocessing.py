"""Evaluation transforms: images of any size to the input of a trained encoder."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from big_ssl.data import bands

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


_MARGINS = {"round": round, "floor": math.floor}


class Pixels(NamedTuple):
    """The normalisation of evaluation: (x / 255 - mean) / std, one value for all channels or one for each."""

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    @classmethod
    def of(cls, options: Mapping) -> "Pixels":
        """From a mapping with the keys mean and std, and possibly others."""
        return cls(options["mean"], options["std"])

    def __call__(self, images):
        """uint8[..., H, W, C] -> float32, on the device."""
        return (images.astype(jnp.float32) / 255 - jnp.asarray(self.mean)) / jnp.asarray(self.std)


class Resize(NamedTuple):
    """mode: "crop" resizes the shorter side to `side` (CLIP); "stretch" both sides, without regard to the
    aspect (SigLIP, ALIGN); then the center is cropped. filter: a key of FILTERS. margin: "round" takes the
    nearest whole margin before the center, as torchvision; "floor" the smaller one, as transformers."""

    mode: str
    side: int
    filter: str
    margin: str


def parse_resize(how: str, size: int) -> Resize:
    """Parses a ModelConfig's `resize`: a mode, then, if not the defaults, a side, a filter and the margin.

    "crop", "crop 256" (DINO, whose central `size` is cropped), "stretch", "stretch 346 bilinear" (ALIGN).
    Raises ValueError for anything else.
    """
    mode, *options = how.split() or [""]
    side = int(options.pop(0)) if options and options[0].isdigit() else size
    filter_ = options.pop(0) if options and options[0] in FILTERS else "bicubic"
    margin = options.pop(0) if options and options[0] in _MARGINS else "round"
    if mode not in ("crop", "stretch") or options:
        raise ValueError(f"resize is {how!r}; it must be like crop, crop 256 or stretch bilinear")
    return Resize(mode, side, filter_, margin)


def resize(images: np.ndarray, size: int, how: str) -> np.ndarray:
    """uint8[B, H, W, C] -> uint8[B, size, size, C], with antialiasing, by Pillow.

    how: see `parse_resize`. Images that already have the target size are returned unchanged, as by Pillow.
    """
    mode, side, filter_, margin = parse_resize(how, size)
    if images.shape[1:3] == (size, size) and side == size:
        return images
    resized = {"crop": _crop, "stretch": _stretch}[mode]
    pillow_images = (resized(bands.from_array(image), side, FILTERS[filter_]) for image in images)
    return np.stack([np.asarray(_middle(image, (size, size), margin)) for image in pillow_images])


def of(config: Mapping) -> Callable[[np.ndarray], np.ndarray]:
    """`resize` for a model, by image_size and resize of its weights.format.ModelConfig."""
    return functools.partial(resize, size=config["image_size"], how=config["resize"])


def model_keys(eval_transform: Mapping) -> dict:
    """A config's eval_transform in the keys of a weights.format.ModelConfig: image_size, resize, views."""
    mode, side, filter_ = (eval_transform[key] for key in ("resize_mode", "resize", "filter"))
    pixels = {key: eval_transform[key] for key in ("mean", "std")}
    how = f"{mode} {side} {filter_}"
    return dict(image_size=eval_transform["size"], resize=how, views=dict(image=pixels))


def enlarged(config: Mapping, factor: int) -> Callable[[np.ndarray], np.ndarray]:
    """`of`, but with the same part of an image in `factor` times as many pixels per side."""
    size = config["image_size"]
    mode, side, filter_, margin = parse_resize(config["resize"], size)
    return functools.partial(resize, size=factor * size, how=f"{mode} {factor * side} {filter_} {margin}")


def _stretch(image, side, filter_):
    return image.resize((side, side), filter_)


def _crop(image, side, filter_):
    # The longer side is rounded down, as by torchvision and transformers. The parts of a hair-thin image
    # outside the crop are cut before resizing.
    image = _middle(image, [min(length, 16 * min(image.size)) for length in image.size])
    sides = [side * length // min(image.size) for length in image.size]
    return image.resize(sides, filter_)


def _middle(image, sides, margin="round"):
    to_whole = _MARGINS[margin]
    left, top = (to_whole((old - new) / 2) for old, new in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))
