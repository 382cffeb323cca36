"""Checks of the images and texts that a model is called with; errors are one line."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from PIL import Image

from big_ssl import io
from big_ssl.data import decode

# What a model's methods take as images, see `image_batch`.
Images = np.ndarray | str | os.PathLike | Image.Image | Sequence[Any]

_TEXTS = "a list of str or int32[B, L]"


def image_batch(
    images: Images, preprocess: Callable[[np.ndarray], np.ndarray] | None, channels: int = 3
) -> np.ndarray:
    """The batch of images that a model is called with.

    Args:
      images: uint8[B, H, W, C]; or one image, or a list of images, of any sizes: a path (local or gs://), an
        image of Pillow, or uint8[H, W, C]. Files are read as evaluators read them, see data.decode.
      preprocess: uint8[B, H, W, C] -> uint8[B, S, S, C]; None for none.
      channels: C.

    Returns:
      uint8[B, S, S, C].

    Raises:
      FileNotFoundError: for a path to no file.
      ValueError: for anything else, and, without `preprocess`, for several sizes.
    """
    images = [images] if _is_one(images, channels) else images
    if isinstance(images, list | tuple):
        opened = (_opened(image, channels) for image in images)
        if preprocess is not None and len(images):
            # One at a time: thousands of photographs would not fit in memory before they are resized.
            return np.concatenate([preprocess(_checked([image], channels)) for image in opened])
        images = list(opened)
    images = _checked(images, channels)
    return images if preprocess is None else preprocess(images)


def opened_images(images: Images, channels: int = 3) -> Iterator[np.ndarray]:
    """Yields each image as uint8[H, W, C], at its own size; images, channels and errors as in image_batch."""
    images = [images] if _is_one(images, channels) else images
    if not isinstance(images, list | tuple):
        images = list(_checked(images, channels))
    for image in images:
        yield _checked([_opened(image, channels)], channels)[0]


def _is_one(images, channels):
    is_file = isinstance(images, str | os.PathLike | Image.Image)
    return is_file or getattr(images, "shape", ())[2:] == (channels,)


def _opened(image, channels):
    """A path or an image of Pillow as uint8[H, W, C]; anything else as it is."""
    if isinstance(image, Image.Image):
        return decode.pillow_pixels(image, channels)
    if not isinstance(image, str | os.PathLike):
        return image
    try:
        return decode.decode_channels(io.as_path(image).read_bytes(), np.asarray, decode.EVALUATION, channels)
    except decode.BadImage as error:
        raise ValueError(f"the image {image} can't be decoded: {error}") from error


def _checked(images, channels) -> np.ndarray:
    required = f"uint8[B, H, W, {channels}]"
    images = _array(images, "images", required)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels or 0 in images.shape:
        raise ValueError(f"images are {images.dtype.name}{list(images.shape)}; they must be {required}")
    return images


def checked_tokens(ids, mask, encoder: nn.Module) -> dict[str, np.ndarray]:
    """The input of a text encoder.

    Args:
      ids: token ids int[B, L].
      mask: bool[B, L] or None for no padding.
      encoder: the text encoder's module.

    Returns:
      dict(ids: int32[B, L], mask: bool[B, L]).

    Raises:
      ValueError: for anything else, ids outside the vocabulary, or ids without the token that is read.
    """
    ids = _array(ids, "texts", _TEXTS)
    if ids.dtype.kind not in "iu" or ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"texts are {ids.dtype.name}{list(ids.shape)}; they must be {_TEXTS}")
    size = encoder.vocab_size
    if ids.min() < 0 or ids.max() >= size:
        wrong = ids[(ids < 0) | (ids >= size)][0]
        raise ValueError(f"token id {wrong} is not in the vocabulary of {size}")
    _check_pooled(encoder, ids)
    mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
    if mask.shape != ids.shape:
        raise ValueError(f"mask is {list(mask.shape)}; it must be {list(ids.shape)}, as the token ids are")
    return dict(ids=ids.astype(np.int32), mask=mask)


def is_text_list(texts) -> bool:
    """Whether texts is a list of str, with at least one."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
        return False
    return all(isinstance(text, str) for text in texts)


def _check_pooled(encoder, ids):
    """Raises ValueError where the encoder would pool a meaningless position."""
    pooling = getattr(encoder, "pooling", "")  # BERT's first token is always there
    if pooling == "last" and ids.shape[1] != encoder.max_len:
        raise ValueError(
            f"texts are {ids.shape[1]} tokens long; this encoder reads the last of {encoder.max_len}, "
            "padding or not: pad them to that"
        )
    if pooling != "eot":
        return
    eot_id = encoder.vocab_size - 1 if encoder.eot_id is None else encoder.eot_id
    without = ~(ids == eot_id).any(1)
    if without.any():
        raise ValueError(f"text {without.argmax()} has no end of text, token id {eot_id}")


def _array(values, name, required):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} are not all of one shape; they must be {required}") from error
