"""Reads a source on all hosts together: each decodes its part of a batch, and all get the whole result."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def no_progress(steps: Iterable, total: int, description: str) -> Iterable:
    """The steps themselves: a loop that shows no progress, see Predictor.progress."""
    del total, description
    return steps


class HostSplit(NamedTuple):
    """The split of a batch over hosts; by default one host has the whole batch.

    size: of a batch. rows: the size of a batch -> int[R], ascending, the rows that this host has.
    place: this host's rows of an array, [R, ...] -> the batch, as a Predictor's methods take it.
    collect: such a batch -> the whole array, on every host.
    """

    size: int = 256
    rows: Callable[[int], np.ndarray] = np.arange
    place: Callable[[np.ndarray], Any] = _whole
    collect: Callable[[Any], np.ndarray] = _whole


UNSPLIT = HostSplit()


def over_mesh(mesh, size: int) -> HostSplit:
    """The split of batches over `mesh`; size is rounded up to a multiple of its batch shards."""
    shards = mesh_lib.batch_shards(mesh)
    gather = jax.jit(lambda batch: batch, out_shardings=replicated(mesh))
    return HostSplit(
        size=-(-size // shards) * shards,
        rows=functools.partial(mesh_lib.local_rows, mesh),
        place=functools.partial(mesh_lib.global_batch, mesh),
        collect=lambda batch: np.asarray(gather(batch)),
    )


def batches(
    source: Sequence[Record],
    read: Callable[[Record], Any],
    predictor,
    description: str,
    transform: Callable[[np.ndarray], np.ndarray] = _whole,
) -> Iterator[tuple[Any, list]]:
    """Iterates over a whole source in batches.

    Args:
      source: the records.
      read: as in chunks.chunks; it returns a JSON value, None to skip the record.
      predictor: preprocesses the images; `split` places them, `progress` shows the progress.
      description: as in Predictor.progress.
      transform: a function of a preprocessed image, uint8[S, S, 3], whose result, an array or a tree of
        arrays, replaces the image.

    Yields:
      (images as predictor.split places them, [the value that `read` returned for each row]). Every host gets
      the whole list. Rows of skipped records, and after the last record, have a black image and None.

    Raises:
      ValueError: on all hosts, if a record of one can't be read or decoded.
    """
    split = predictor.split
    rows, starts = split.rows(split.size), range(0, len(source), split.size)
    numbers = ([start + int(row) for row in rows if start + row < len(source)] for start in starts)
    preprocess = chunks.prepared(predictor.preprocess)
    make = lambda image: transform(preprocess(image))  # noqa: E731
    black = make(np.zeros((8, 8, predictor.channels), np.uint8))
    loaded = chunks.decoded(source, read, make, numbers, predictor.channels)
    with contextlib.closing(loaded):
        for _ in predictor.progress(starts, len(starts), description):
            with distributed.raise_on_all_hosts(ValueError):
                examples = next(loaded)
            images = [black if item is None else item[0] for item in examples]
            images += [black] * (len(rows) - len(examples))
            values = [None if item is None else item[1] for item in examples]
            batch = jax.tree.map(lambda *x: np.stack(x), *images)
            yield split.place(batch), _collected(rows, values, split.size)


def _collected(rows, values, size):
    """The values of all hosts, a list of `size` in the order of the rows."""
    collected: list = [None] * size
    for text in distributed.gather(json.dumps([rows[: len(values)].tolist(), values])):
        for row, value in zip(*json.loads(text), strict=True):
            collected[row] = value
    return collected
