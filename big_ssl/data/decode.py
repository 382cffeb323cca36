"""From encoded images to arrays, on the host."""

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from big_ssl.data.records import BadValue

T = TypeVar("T")


class BadImage(BadValue):
    """An image that cannot be decoded."""


def decode_rgb(encoded: bytes, then: Callable[[Image.Image], T]) -> T:
    """Returns then(the image, RGB, with transparency over white).

    Raises BadImage for what Pillow can't read, or `then` can't use: truncated or not an image, empty, or so
    large that Pillow takes it for a decompression bomb.
    """
    return _decode(encoded, lambda image: then(_on_white(image)))


def decode_array(encoded: bytes) -> np.ndarray:
    """[H, W] or [H, W, C] of an image as it is stored: palette indices stay indices, 16 bits stay 16.

    Raises BadImage as decode_rgb does.
    """
    return _decode(encoded, np.asarray)


def _decode(encoded, then):
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return then(image)
    except Exception as error:  # each of Pillow's formats raises its own for damaged files
        raise BadImage(f"{type(error).__name__}: {error}") from error


def resized(image: Image.Image, size: int, resize_mode: str) -> tuple[np.ndarray, tuple]:
    """Bicubic with antialiasing.

    Args:
      image: RGB.
      size: the shorter side's length with resize_mode "crop", both sides' with "stretch".
      resize_mode: "crop" keeps the aspect; "stretch" does not.

    Returns:
      uint8[H, W, 3], and the part of the image that it shows: (left, top, right, bottom) in fractions of its
      width and height; all of it, unless the image is hair-thin.
    """
    if resize_mode == "stretch":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)), (0.0, 0.0, 1.0, 1.0)
    # A hair-thin image would take gigabytes, enlarged whole.
    image, region = _center(image, [min(side, 16 * min(image.size)) for side in image.size])
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)), region


def _on_white(image):
    if not image.has_transparency_data:  # the same pixels in a hundredth of the time
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _center(image, sides):
    (width, height), (w, h) = image.size, sides
    left, top = (width - w) // 2, (height - h) // 2
    region = (left / width, top / height, (left + w) / width, (top + h) / height)
    return image.crop((left, top, left + w, top + h)), region
