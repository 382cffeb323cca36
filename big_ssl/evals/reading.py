"""A source read by all hosts together: each decodes its own part, and all get what is made of the whole."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from big_ssl.data import chunks
from big_ssl.data.sources import Record
from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated


def _whole(rows):
    return rows


class HostSplit(NamedTuple):
    """How a batch is split over hosts; by default there is one, which has it whole.

    size: of a batch. rows: the size of a batch -> int[R], ascending, those of its rows that this host has.
    place: this host's rows of an array, [R, ...] -> the batch, as an Embedder's functions take it.
    collect: such a batch -> the whole array, on every host.
    """

    size: int = 256
    rows: Callable[[int], np.ndarray] = np.arange
    place: Callable[[np.ndarray], Any] = _whole
    collect: Callable[[Any], np.ndarray] = _whole


UNSPLIT = HostSplit()


def over_mesh(mesh, size: int) -> HostSplit:
    """The split of batches whose rows lie over `mesh`; size is rounded up to what the mesh divides."""
    ways = mesh_lib.batch_shards(mesh)
    gather = jax.jit(lambda batch: batch, out_shardings=replicated(mesh))
    return HostSplit(
        size=-(-size // ways) * ways,
        rows=functools.partial(mesh_lib.local_rows, mesh),
        place=functools.partial(mesh_lib.global_batch, mesh),
        collect=lambda batch: np.asarray(gather(batch)),
    )


def batches(
    source: Sequence[Record],
    read: Callable[[Record], Any],
    embedder,
    what: str,
    make: Callable[[np.ndarray], np.ndarray] = _whole,
) -> Iterator[tuple[Any, list]]:
    """Yields (a batch of pictures, of each of its rows what `read` made of the record) over all of a source.

    The pictures are those of embedder.split.place, the values whole on every host: None, and a black
    picture, where `read` left the record out, and after the last. read: as in chunks.chunks, of what JSON
    can hold; make: a prepared picture -> what takes its place; what: as in embedder.track.

    Raises ValueError on all hosts where a record of one can't be read or decoded.
    """
    split = embedder.split
    rows, starts = split.rows(split.size), range(0, len(source), split.size)
    numbers = ([start + int(row) for row in rows if start + row < len(source)] for start in starts)
    make_one = lambda picture: make(chunks.prepared(embedder.prepare)(picture))  # noqa: E731
    black = make_one(np.zeros((8, 8, 3), np.uint8))
    loaded = chunks.decoded(source, read, make_one, numbers)
    with contextlib.closing(loaded):
        for _ in embedder.track(starts, len(starts), what):
            with distributed.raise_on_all_hosts(ValueError):
                examples = next(loaded)
            pictures = [black if item is None else item[0] for item in examples]
            pictures += [black] * (len(rows) - len(examples))
            values = [None if item is None else item[1] for item in examples]
            yield split.place(np.stack(pictures)), _collected(rows, values, split.size)


def _collected(rows, values, size):
    """The values of all hosts, a list of `size` in the order of the rows."""
    collected: list = [None] * size
    for text in distributed.gather(json.dumps([rows[: len(values)].tolist(), values])):
        for row, value in zip(*json.loads(text), strict=True):
            collected[row] = value
    return collected
