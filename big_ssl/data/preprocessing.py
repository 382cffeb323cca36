"""Evaluation transforms: images of any size to the input of a trained encoder."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Pixels(NamedTuple):
    """The normalisation of evaluation: (x / 255 - mean) / std, one value for all channels or one for each."""

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    @classmethod
    def of(cls, options: Mapping) -> "Pixels":
        """From a mapping with the keys mean and std, and possibly others."""
        return cls(options["mean"], options["std"])

    def __call__(self, images):
        """uint8[..., H, W, 3] -> float32, on the device."""
        return (images.astype(jnp.float32) / 255 - jnp.asarray(self.mean)) / jnp.asarray(self.std)


class Resize(NamedTuple):
    """mode: "crop" resizes the shorter side to `side` (CLIP); "stretch" both sides, without regard to the
    aspect (SigLIP, ALIGN); then the centre is cropped. filter: bicubic or bilinear."""

    mode: str
    side: int
    filter: str


def parse_resize(how: str, size: int) -> Resize:
    """Parses a ModelConfig's `resize`: a mode, then, if not the defaults, a side and a filter.

    "crop", "crop 256" (DINO, whose central `size` is cropped), "stretch", "stretch 346 bilinear" (ALIGN).
    Raises ValueError for anything else.
    """
    mode, *options = how.split() or [""]
    side = int(options.pop(0)) if options and options[0].isdigit() else size
    filter_ = options.pop(0) if options and options[0] in FILTERS else "bicubic"
    if mode not in ("crop", "stretch") or options:
        raise ValueError(f"resize is {how!r}; it must be like crop, crop 256 or stretch bilinear")
    return Resize(mode, side, filter_)


def resize(images: np.ndarray, size: int, how: str) -> np.ndarray:
    """uint8[B, H, W, 3] -> uint8[B, size, size, 3], with antialiasing, by Pillow.

    how: see `parse_resize`. Images that already have the target size are returned unchanged, as by Pillow.
    """
    mode, side, filter_ = parse_resize(how, size)
    if images.shape[1:3] == (size, size) and side == size:
        return images
    resized = {"crop": _crop, "stretch": _stretch}[mode]
    pillow_images = (resized(Image.fromarray(image), side, FILTERS[filter_]) for image in images)
    return np.stack([np.asarray(_middle(image, (size, size))) for image in pillow_images])


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
    mode, side, filter_ = parse_resize(config["resize"], size)
    return functools.partial(resize, size=factor * size, how=f"{mode} {factor * side} {filter_}")


def _stretch(image, side, filter_):
    return image.resize((side, side), filter_)


def _crop(image, side, filter_):
    # torchvision's rounding, with which the published weights were trained: the longer side rounded down, the
    # margin to the nearest. The parts of a hair-thin image outside the crop are cut before resizing.
    image = _middle(image, [min(length, 16 * min(image.size)) for length in image.size])
    sides = [side * length // min(image.size) for length in image.size]
    return image.resize(sides, filter_)


def _middle(image, sides):
    left, top = (round((old - new) / 2) for old, new in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))
