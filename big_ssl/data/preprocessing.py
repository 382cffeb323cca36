"""From images of any size to what a trained tower wants to see."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image


def resize(images: np.ndarray, size: int, how: str, shorter_side: int = 0) -> np.ndarray:
    """uint8[B, H, W, 3] -> uint8[B, size, size, 3], bicubic with antialiasing, by Pillow.

    how: "crop", the shorter side resized to shorter_side, or size if 0, and the middle kept (CLIP);
    "squash", both sides, whatever the aspect (SigLIP, ALIGN). Images that need no resizing come back
    untouched, as Pillow leaves them.
    """
    before = shorter_side or size
    if images.shape[1:3] == (size, size) == (before, before):
        return images
    resized = {"crop": _crop, "squash": _squash}[how]
    return np.stack([np.asarray(resized(Image.fromarray(image), size, before)) for image in images])


def of(config: Mapping) -> Callable[[np.ndarray], np.ndarray]:
    """`resize` as a model wants it: by image_size, resize and, where it has it, shorter_side of a
    weights.format.Config."""
    return functools.partial(
        resize,
        size=config["image_size"],
        how=config["resize"],
        shorter_side=config.get("shorter_side", 0),
    )


def _squash(image, size, before):
    return _middle(image.resize((before, before), Image.Resampling.BICUBIC), (size, size))


def _crop(image, size, before):
    # torchvision's rounding, which the published weights have seen: the longer side rounded down,
    # the margin to the nearest. Of a hair-thin image all that is never seen stays unresized.
    image = _middle(image, [min(side, 16 * min(image.size)) for side in image.size])
    sides = [before * side // min(image.size) for side in image.size]
    return _middle(image.resize(sides, Image.Resampling.BICUBIC), (size, size))


def _middle(image, sides):
    left, top = (round((side - kept) / 2) for side, kept in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))
