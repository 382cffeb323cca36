"""Images of any number of channels, each a Pillow image of its own."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_NPY = b"\x93NUMPY"


class Bands:
    """An image of n channels with those methods of Pillow's that resize and crop.

    Pillow knows only a few kinds of images, and multiplies an RGBA's colours by its alpha when it resizes.
    """

    def __init__(self, bands: Sequence[Image.Image]):
        """bands: images of mode "L" and of one size."""
        self._bands = tuple(bands)

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Bands":
        """pixels: uint8[H, W, C]."""
        return cls([Image.fromarray(band) for band in np.moveaxis(pixels, -1, 0)])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self._bands[0].size

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return len(self._bands) * self.size[0] * self.size[1]

    def crop(self, box) -> "Bands":
        """See PIL.Image.Image.crop."""
        return Bands([band.crop(box) for band in self._bands])

    def resize(self, size, resample, box=None) -> "Bands":
        """See PIL.Image.Image.resize."""
        return Bands([band.resize(size, resample, box) for band in self._bands])

    def __array__(self, dtype=None, copy=None):
        """uint8[H, W, C]."""
        del copy  # stacking always copies
        return np.stack([np.asarray(band) for band in self._bands], axis=-1).astype(dtype or np.uint8)


def from_array(pixels: np.ndarray) -> Image.Image | Bands:
    """uint8[H, W, C] as a Pillow image if it is RGB, as Bands otherwise."""
    return Image.fromarray(pixels) if pixels.shape[-1] == 3 else Bands.of(pixels)


def visible(pixels: np.ndarray) -> np.ndarray:
    """uint8[H, W, C] as a picture, uint8[H, W, 3]: the first three channels, or the first as grey."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, -1)


def is_npy(encoded: bytes) -> bool:
    """Whether a file is a .npy, by its first bytes."""
    return encoded.startswith(_NPY)


def from_npy(encoded: bytes, channels: int) -> Bands:
    """The image in a .npy file, uint8[H, W, C]. Raises ValueError for any other array."""
    pixels = np.load(io.BytesIO(encoded), allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels or not pixels.size:
        raise ValueError(f"it is {pixels.dtype}{list(pixels.shape)}; it must be uint8[H, W, {channels}]")
    return Bands.of(pixels)


def from_pillow(image: Image.Image, channels: int) -> Bands:
    """The stored channels of an image; its colours as grey for one channel.

    Raises ValueError if it has another number of channels, or more than 8 bits in each.
    """
    if channels == 1:
        return Bands([image.convert("L")])
    if len(image.getbands()) != channels:
        raise ValueError(f"it has {len(image.getbands())} channels, {image.mode}; it must have {channels}")
    return Bands([band if band.mode == "L" else _refused(image) for band in image.split()])


def _refused(image):
    raise ValueError(f"its mode is {image.mode}; channels must have 8 bits")
