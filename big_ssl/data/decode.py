"""From encoded images to arrays, on the host: the one place where images are decoded.

All sources follow one rule:

- Orientation: training turns an image upright as its EXIF orientation tells. Evaluation leaves the pixels as
  stored, as torchvision and the public formats' own processors do; TIFF is turned upright by Pillow itself.
- Transparency, of an alpha channel, a palette or a transparent colour, lies over white.
- Grey of 16 bits is scaled to 8 by its type's whole range. Floats and 32-bit integers beyond 16 bits have no
  known range, and are refused.

A source's options `orientation` and `alpha` change the first two, see Options. Images of another number of
channels than three are read as they are stored, see decode_channels.
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from big_ssl.data import bands
from big_ssl.data.records import BadValue

T = TypeVar("T")

ORIENTATIONS = ("exif", "stored")
ALPHAS = ("white", "drop")


class BadImage(BadValue):
    """An image that cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How encoded images are read. An empty option is the reader's own: TRAINING's or EVALUATION's.

    Args:
      orientation: "exif" turns an image upright by its EXIF orientation, "stored" ignores it.
      alpha: "white" lays a transparent image over white; "drop" keeps the colours of transparent pixels, as
        Pillow's convert("RGB") does.

    Raises:
      ValueError: for other values.
    """

    orientation: str = ""
    alpha: str = ""

    def __post_init__(self):
        for name, known in (("orientation", ORIENTATIONS), ("alpha", ALPHAS)):
            if getattr(self, name) not in ("", *known):
                raise ValueError(f"{name} is {getattr(self, name)!r}; use {' or '.join(known)}")

    def or_else(self, default: "Options") -> "Options":
        """This, with the default's values for empty options."""
        return Options(self.orientation or default.orientation, self.alpha or default.alpha)


TRAINING = Options("exif", "white")
EVALUATION = Options("stored", "white")


def decode_rgb(encoded: bytes, then: Callable[[Image.Image], T], options: Options = TRAINING) -> T:
    """Decodes an image to RGB.

    Args:
      encoded: a file's bytes.
      then: the RGB image -> the result.
      options: see Options; no option is empty.

    Returns:
      The result of `then`.

    Raises:
      BadImage: for what Pillow can't read, or `then` can't use: truncated or not an image, empty, so large
        that Pillow takes it for a decompression bomb, or of a depth whose range is unknown.
    """
    return _decode(encoded, lambda image: then(_rgb(image, options.alpha)), options)


def decode_channels(
    encoded: bytes, then: Callable[[Any], T], options: Options = TRAINING, channels: int = 3
) -> T:
    """Decodes an image of any number of channels: files of 3 as decode_rgb does, others as they are stored.

    Args:
      encoded: the bytes of a file that Pillow reads, or of a .npy with uint8[H, W, C].
      then: the RGB image, or bands.Bands -> the result.
      options: see Options; alpha is not looked at where channels are not 3, since a fourth is then data.
      channels: how many the image must have. Colours become grey for 1.

    Returns:
      The result of `then`.

    Raises:
      BadImage: as decode_rgb, and for another number of channels, or several frames.
    """
    if bands.is_npy(encoded):
        with _errors_named():
            return then(bands.from_npy(encoded, channels))
    if channels == 3:
        return decode_rgb(encoded, then, options)
    return _decode(encoded, lambda image: then(_stored(image, channels)), options)


def pillow_pixels(image: Image.Image, channels: int = 3) -> np.ndarray:
    """uint8[H, W, channels] of an image that the caller has opened, by evaluation's rule; it is unchanged.

    Raises BadImage as decode_channels does.
    """
    with _errors_named():
        # No copy is made before: it would lose the tags of TIFF, which tell the range of its values.
        rgb = channels == 3
        return np.asarray(_rgb(image, EVALUATION.alpha) if rgb else _stored(image, channels))


def decode_array(encoded: bytes, options: Options = TRAINING) -> np.ndarray:
    """[H, W] or [H, W, C] of an image as it is stored: palette indices stay indices, 16 bits stay 16.

    It is turned by EXIF as an image is; a .npy file is returned as it is. Raises BadImage as decode_rgb does,
    except that it keeps any depth.
    """
    if bands.is_npy(encoded):
        with _errors_named():
            return np.load(io.BytesIO(encoded), allow_pickle=False)
    return _decode(encoded, np.asarray, options)


def _decode(encoded, then, options):
    with _errors_named("in no format that Pillow reads" if encoded else "the file is empty"):
        image = Image.open(io.BytesIO(encoded))
        image.load()
        if options.orientation == "exif":
            _turn_upright(image)
        return then(image)


@contextlib.contextmanager
def _errors_named(unidentified="in no format that Pillow reads"):
    """Raises any error as BadImage: each of Pillow's formats raises its own for damaged files.

    unidentified: in place of the message of UnidentifiedImageError, which is an address in memory.
    """
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"UnidentifiedImageError: {unidentified}") from error
    except Exception as error:
        raise BadImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _turn_upright(image):
    # Damaged metadata, for which each format raises its own error, leave the pixels intact; Pillow turns
    # them before it rewrites the metadata.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


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


def _rgb(image, alpha):
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if alpha == "drop" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # of which Pillow warns
    if alpha == "drop" or not image.has_transparency_data:  # the same pixels in a hundredth of the time
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    return background.convert("RGB")


def _stored(image, channels):
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise BadImage(f"it has {frames} frames; an image of {channels} channels has one")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    return bands.from_pillow(image, channels)


def _eight_bits(image):
    """L, or LA with a transparent colour, of grey of 16 bits, which Pillow's convert would clip at 255."""
    grey = np.asarray(image)
    if grey.dtype.kind == "f":
        raise BadImage("it has floats, whose range is unknown; save it with 8 or 16 bits")
    if grey.min() < 0 or grey.max() > 65535:
        raise BadImage(
            f"it has 32-bit integers from {grey.min()} to {grey.max()}, whose range is unknown; "
            "save it with 8 or 16 bits"
        )
    tags = getattr(image, "tag_v2", {})  # of TIFF, which also has 12 bits, and white as 0
    highest = 2 ** min(16, tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]) - 1
    scaled = ((grey.astype(np.int32) * 255 + highest // 2) // highest).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        scaled = 255 - scaled
    transparent = image.info.get("transparency")
    if transparent is None:
        return Image.fromarray(scaled)
    alpha = np.where(grey == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(scaled), Image.fromarray(alpha)))


def _center(image, sides):
    (width, height), (w, h) = image.size, sides
    left, top = (width - w) // 2, (height - h) // 2
    region = (left / width, top / height, (left + w) / width, (top + h) / height)
    return image.crop((left, top, left + w, top + h)), region
