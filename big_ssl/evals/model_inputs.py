"""Checks of the images and texts that a model is called with; errors are one line."""

from collections.abc import Sequence

import flax.linen as nn
import numpy as np

_IMAGES, _TEXTS = "uint8[B, H, W, 3]", "a list of str or int32[B, L]"


def checked_images(images) -> np.ndarray:
    """The images as an array. Raises ValueError for anything but uint8[B, H, W, 3]."""
    images = _array(images, "images", _IMAGES)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"images are {images.dtype.name}{list(images.shape)}; they must be {_IMAGES}")
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
