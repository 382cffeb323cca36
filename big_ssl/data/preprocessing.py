"""From images of any size to what a trained tower wants to see."""

import numpy as np
from PIL import Image


def resize(images: np.ndarray, size: int, how: str) -> np.ndarray:
    """uint8[B, H, W, 3] -> uint8[B, size, size, 3], bicubic with antialiasing, by Pillow.

    how: "crop", the shorter side resized and the middle kept (CLIP); "squash", both sides, whatever
    the aspect (SigLIP). Images of that size already come back untouched, as Pillow leaves them.
    """
    if images.shape[1:3] == (size, size):
        return images
    resized = {"crop": _crop, "squash": _squash}[how]
    return np.stack([np.asarray(resized(Image.fromarray(image), size)) for image in images])


def _squash(image, size):
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _crop(image, size):
    # torchvision's rounding, which the published weights have seen: the longer side rounded down,
    # the margin to the nearest. Of a hair-thin image all that is never seen stays unresized.
    image = _middle(image, [min(side, 16 * min(image.size)) for side in image.size])
    sides = [size * side // min(image.size) for side in image.size]
    return _middle(image.resize(sides, Image.Resampling.BICUBIC), (size, size))


def _middle(image, sides):
    left, top = (round((side - kept) / 2) for side, kept in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))
