"""A whole source in its own order, decoded in parallel, a chunk at a time: what evaluations read."""

import collections
import concurrent.futures
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from big_ssl import retry
from big_ssl.data import decode
from big_ssl.data.records import IMAGE, Record

T = TypeVar("T")

# Pictures that are decoded together; up to three chunks are in memory at a time.
CHUNK = 512


def chunks(
    source: Sequence[Record], read: Callable[[Record], Any], prepare: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, list]]:
    """Yields (images: uint8[n, S, S, 3], what `read` made of each record) over all of a source.

    read: of a record, anything but None, which leaves the record out before it is decoded;
    prepare: uint8[1, H, W, 3] -> uint8[1, S, S, 3]. Raises ValueError, naming the record, for a
    picture that can't be decoded: a result must not depend on how many were left out.
    """
    starts = range(0, len(source), CHUNK)
    numbers = (range(start, min(start + CHUNK, len(source))) for start in starts)
    for loaded in decoded(source, read, prepared(prepare), numbers):
        examples = [item for item in loaded if item is not None]
        if examples:  # of a chunk that `read` leaves out altogether there is nothing
            images, values = zip(*examples, strict=True)
            yield np.stack(images), list(values)


def decoded(
    source: Sequence[Record],
    read: Callable[[Record], Any],
    make: Callable[[Image.Image], T],
    batches: Iterable[Sequence[int]],
) -> Generator[list[tuple[T, Any] | None], None, None]:
    """Yields for each of `batches`, numbers of records, what `load` gives of each, decoded in parallel.

    At least a batch, and about CHUNK records, are decoded ahead, while those before are embedded.
    """
    load_one = functools.partial(load, source, read, make)
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
    """What makes uint8[S, S, 3] of a picture, for `load`; prepare: as in `chunks`."""
    return lambda picture: prepare(np.asarray(picture)[None])[0]


def load(
    source: Sequence[Record], read: Callable[[Record], Any], make: Callable[[Image.Image], T], index: int
) -> tuple[T, Any] | None:
    """(what `make` made of the picture, what `read` made of the record) of one record, None where that is
    None; see `chunks`."""
    record = retry.call(source.__getitem__, index)
    kept = read(record)
    if kept is None:
        return None
    try:
        picture = decode.decode_rgb(record[IMAGE], lambda image: image)
    except decode.BadImage as error:
        raise ValueError(f"data: the picture of record {index} can't be decoded: {error}") from error
    return make(picture), kept
