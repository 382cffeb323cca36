"""From encoded pictures to uint8 arrays, on the host."""

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")


class BadImage(ValueError):
    """A picture that cannot be decoded."""


def opened(encoded: bytes, then: Callable[[Image.Image], T]) -> T:
    """then(the picture, RGB, transparency over white).

    Raises BadImage for what Pillow can't read, or `then` can't use: truncated or not a picture, empty,
    or so large that Pillow takes it for a decompression bomb.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return then(_on_white(image))
    except Exception as error:  # each of Pillow's formats raises its own for damaged files
        raise BadImage(f"{type(error).__name__}: {error}") from error


def resized(image: Image.Image, size: int, fit: str) -> np.ndarray:
    """uint8[H, W, 3], bicubic with antialiasing. fit: "crop", the shorter side becomes size and the
    other follows; "squash", both become size, whatever the aspect."""
    if fit == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    # A hair-thin picture would take gigabytes, enlarged whole.
    image = _center(image, [min(side, 16 * min(image.size)) for side in image.size])
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly placed [size, size, 3] window of a larger or equal picture."""
    top, left = rng.integers(0, [side - size + 1 for side in image.shape[:2]])
    return image[top : top + size, left : left + size]


def _on_white(image):
    if not image.has_transparency_data:  # the same pixels in a hundredth of the time
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _center(image, sides):
    left, top = ((side - kept) // 2 for side, kept in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))
