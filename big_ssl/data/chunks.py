"""Reads a whole source in order for evaluation, decoded in parallel, a chunk at a time."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from big_ssl import retry
from big_ssl.data import decode, sources
from big_ssl.data.records import IMAGE, Record

T = TypeVar("T")

# Images that are decoded together; up to three chunks are in memory at a time.
CHUNK = 512


def chunks(
    source: Sequence[Record], read: Callable[[Record], Any], prepare: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, list]]:
    """Yields (images: uint8[n, S, S, 3], [the value that `read` returns for each record]) over a source.

    Args:
      source: the records.
      read: record -> a value; None skips the record before its image is decoded.
      prepare: uint8[1, H, W, 3] -> uint8[1, S, S, 3].

    Raises:
      ValueError: naming the record, for one that can't be read or decoded: a result must not depend on how
        many images were skipped.
    """
    starts = range(0, len(source), CHUNK)
    numbers = (range(start, min(start + CHUNK, len(source))) for start in starts)
    for loaded in decoded(source, read, prepared(prepare), numbers):
        examples = [item for item in loaded if item is not None]
        if examples:  # `read` may skip a whole chunk
            images, values = zip(*examples, strict=True)
            yield np.stack(images), list(values)


def decoded(
    source: Sequence[Record],
    read: Callable[[Record], Any],
    make: Callable[[Image.Image], T],
    batches: Iterable[Sequence[int]],
    channels: int = 3,
) -> Generator[list[tuple[T, Any] | None], None, None]:
    """Yields [load(..., index) for each index] for each batch of record indices, decoded in parallel.

    At least a batch, and about CHUNK records, are decoded ahead, while the caller embeds the previous ones.

    Args:
      source, read, make, channels: as in `load`.
      batches: lists of record indices.
    """
    load_one = functools.partial(load, source, read, make, channels=channels)
    waiting: collections.deque = collections.deque()
    ahead = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for numbers in batches:
            waiting.append((len(numbers), pool.map(load_one, numbers)))
            ahead += len(numbers)
            while len(waiting) > 1 and ahead - waiting[0][0] >= CHUNK:
                count, loaded = waiting.popleft()
                ahead -= count
                yield list(loaded)
        for _, loaded in waiting:
            yield list(loaded)


def prepared(prepare: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image.Image], np.ndarray]:
    """The function image -> uint8[S, S, 3] for `load`. prepare: as in `chunks`."""
    return lambda image: prepare(np.asarray(image)[None])[0]


def load(
    source: Sequence[Record],
    read: Callable[[Record], Any],
    make: Callable[[Any], T],
    index: int,
    channels: int = 3,
) -> tuple[T, Any] | None:
    """Loads one record.

    Args:
      source: the records.
      read: as in `chunks`.
      make: an image, as decode.decode_channels gives it -> a result.
      index: of the record.
      channels: of its image.

    Returns:
      (make(image), read(record)); None if `read` returns None.

    Raises:
      ValueError: as in `chunks`.
    """
    try:
        record = retry.call(source.__getitem__, index)
    except (ValueError, OSError) as error:
        if retry.is_transient(error):
            raise
        name = sources.record_name(source, index)
        raise ValueError(f"data: {name} can't be read: {' '.join(str(error).split())}") from error
    value = read(record)
    if value is None:
        return None
    options = sources.decode_options(source, decode.EVALUATION)
    try:
        image = decode.decode_channels(record[IMAGE], lambda image: image, options, channels)
    except decode.BadImage as error:
        name = sources.record_name(source, index)
        raise ValueError(f"data: the image of {name} can't be decoded: {error}") from error
    return make(image), value
