"""From encoded pictures to uint8 arrays, on the host."""

import io

import numpy as np
from PIL import Image


class BadImage(ValueError):
    """A picture that cannot be decoded."""


def decode(encoded: bytes, size: int) -> np.ndarray:
    """uint8[size, size, 3]: transparency over white, shorter side resized, centre cropped.

    Bicubic with antialiasing. Raises BadImage for what Pillow can't read: truncated or not a
    picture, empty, or so large that Pillow takes it for a decompression bomb.
    """
    return _opened(encoded, lambda image: _square(image, size))


def decode_whole(encoded: bytes) -> np.ndarray:
    """uint8[H, W, 3] at its own size, transparency over white. Raises BadImage as `decode` does."""
    return _opened(encoded, np.asarray)


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly placed [size, size, 3] window of a larger or equal square picture."""
    top, left = rng.integers(0, image.shape[0] - size + 1, 2)
    return image[top : top + size, left : left + size]


def _opened(encoded, then):
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return then(_on_white(image))
    except Exception as error:  # each of Pillow's formats raises its own for damaged files
        raise BadImage(f"{type(error).__name__}: {error}") from error


def _on_white(image):
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _square(image, size):
    # A hair-thin picture would take gigabytes, enlarged whole.
    image = _center(image, [min(side, 16 * min(image.size)) for side in image.size])
    scale = size / min(image.size)
    resized = tuple(max(size, round(side * scale)) for side in image.size)
    return np.asarray(_center(image.resize(resized, Image.Resampling.BICUBIC), (size, size)))


def _center(image, sides):
    left, top = ((side - kept) // 2 for side, kept in zip(image.size, sides, strict=True))
    return image.crop((left, top, left + sides[0], top + sides[1]))
