"""Batches of typed fields by Grain, as a pure function of (seed, step)."""

import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import logging

from big_ssl import retry
from big_ssl.data import decode, sources
from big_ssl.data.cache import Cache
from big_ssl.data.fields import Draws, Field, Image
from big_ssl.data.records import BadValue, Record

# How many neighbours may stand in for one bad record before the data counts as unusable.
_MAX_NEIGHBOURS = 100
# How many of them may fail with a transient error before the whole source counts as gone.
_MAX_UNANSWERED = 3
# How many replaced records a host names.
_NAMED = 10

# The counter of records that their source can't read; the other counters are those of the fields' kinds.
UNREADABLE = "replaced_records"
# Marks an example for which there was no neighbour either: it is zeros.
MISSING = "missing_examples"


class BadRecord(ValueError):
    """A record that can't be used. counter: the name under which it is counted.

    unanswered: whether the error is of a transient kind, but persisted.
    """

    def __init__(self, message: str, counter: str, unanswered: bool = False):
        super().__init__(message)
        self.counter, self.unanswered = counter, unanswered


class ReplacedRecords:
    """Counts the records that a host replaced, and names the first of them in the log."""

    def __init__(self, source: Sequence):
        self._source, self._count, self._lock = source, 0, threading.Lock()

    def add(self, index: int, error: Exception) -> None:
        """Logs the record's name and the error: for the first records, then at each power of ten."""
        with self._lock:
            self._count += 1
            count = self._count
        if count <= _NAMED:
            logging.warning("data: %s is replaced: %s", sources.record_name(self._source, index), error)
        elif str(count).strip("0") == "1":  # 100, 1,000, ...
            name = sources.record_name(self._source, index)
            logging.warning("data: %d records are replaced so far; the last: %s: %s", count, name, error)


def counters(fields: Mapping[str, Field]) -> tuple[str, ...]:
    """The names under which replaced records are counted, in the order of the fields."""
    return tuple(dict.fromkeys((UNREADABLE, *(field.counter for field in fields.values()))))


def data_errors(fields: Mapping[str, Field]) -> dict[str, bool]:
    """{counter: False, "missing_examples": False}: the marks of an example in a batch, beside its fields."""
    return dict.fromkeys((*counters(fields), MISSING), False)


def zeros(fields: Mapping[str, Field]) -> dict:
    """{field: its zeros}, with the shapes and dtypes of every example."""
    return {name: field.zeros() for name, field in fields.items()}


class LoadExample(grain.transforms.RandomMap):
    """Index -> {field: its value, "data_errors": {counter: bool}}.

    A record that can't be read, or whose value a field can't use, is replaced by the next good one, so that
    the same (seed, step) gives the same batch, and marked in `data_errors`. If none of the next hundred is
    good the values are zeros, marked as missing, so that all hosts stop the run together.

    fields: {name: Field}, opened for this source; cache_mib: the memory for prepared images, which are kept
    until it is full.
    """

    def __init__(self, source: Sequence, fields: Mapping[str, Field], cache_mib: float = 0):
        self.source, self.fields = source, fields
        # Cheap fields first: a bad text is found before its image is decoded.
        self._ordered = sorted(fields.items(), key=lambda item: item[1].load_order)
        self._images: dict[str, dict[str, Image]] = {}
        for name, field in fields.items():
            if isinstance(field, Image):
                self._images.setdefault(field.key, {})[name] = field
        self._cache = Cache(int(cache_mib * 2**20))
        self._decode_options = sources.decode_options(source, decode.TRAINING)
        self._replaced = ReplacedRecords(source)
        self._gone = False

    def random_map(self, index: int, rng: np.random.Generator):
        errors, unanswered = data_errors(self.fields), 0
        for position in (np.arange(_MAX_NEIGHBOURS) + index) % len(self.source):
            if self._gone:
                break
            try:
                return self.load(int(position), rng, patient=not unanswered) | dict(data_errors=errors)
            except BadRecord as error:
                errors[error.counter] = True
                self._replaced.add(int(position), error)
                unanswered += error.unanswered
                self._gone = self._gone or unanswered >= _MAX_UNANSWERED
        logging.error("data: neither record %d nor any of its neighbours can be used", index)
        return zeros(self.fields) | dict(data_errors=errors | {MISSING: True})

    def load(self, index: int, rng: np.random.Generator, patient: bool = True) -> dict:
        """The example of one record, without data_errors.

        patient: wait for errors of the storage to pass. Raises BadRecord.
        """
        item = self._read(index, patient)
        record = item[rng.integers(len(item))] if isinstance(item, list) else item
        draws, values = Draws(rng, {}, {}, {}), {}
        for name, field in self._ordered:
            try:
                if isinstance(field, Image) and name not in draws.prepared:
                    draws.prepared.update(self._prepared(record, field.key))
                values[name] = field.load(record, draws)
            except BadValue as error:
                raise BadRecord(str(error), field.counter) from error
        return values

    def _read(self, index, patient):
        try:
            return retry.call(self.source.__getitem__, index) if patient else self.source[index]
        except Exception as error:  # each storage and each format has its own
            raise BadRecord(retry.one_line(error), UNREADABLE, retry.is_transient(error)) from error

    def _prepared(self, record: Record, key):
        """{image field: Prepared} of all image fields of a key: decoded once."""

        def prepare(image):
            return {name: field.cropper.prepare(image) for name, field in self._images[key].items()}

        encoded = record.get(key)
        if not isinstance(encoded, bytes):
            raise BadValue(f"no encoded image under {key!r}")
        channels = next(iter(self._images[key].values())).channels
        return self._cache.get(
            key,
            encoded,
            lambda image: decode.decode_channels(image, prepare, self._decode_options, channels),
        )


class Part(NamedTuple):
    """One source of a stream. load: its loader, or any grain RandomMap of record indices; records: their
    number; weight: relative to the stream's other parts."""

    load: grain.transforms.RandomMap
    records: int
    weight: float = 1.0


class _Rows(grain.MapDataset):
    """The examples at positions `rows`, int[R], of every `batch_size` examples of the parent."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self):
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        batch, position = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + int(self._rows[position])]


def batches(
    parts: Sequence[Part],
    batch_size: int,
    seed: int,
    start: int,
    threads: int,
    rows: np.ndarray | None = None,
) -> grain.DatasetIterator:
    """An endless iterator of batches from step `start` on.

    Each part is reshuffled in each of its epochs. Every batch mixes the parts by weight, to a rounding that
    evens out over batches, in rows drawn at random. An example has the same row on any number of processes,
    so that dropout, flips and the groups of batch norm do not depend on their number.

    Args:
      parts: the sources, at least one.
      batch_size: of all processes together.
      seed: of the order and of every example's draws.
      start: the first step.
      threads: the number of threads that load examples.
      rows: int[R], the rows of the global batches that this process loads, None for all of them.
    """
    rows = np.arange(batch_size) if rows is None else rows
    examples = _Rows(_examples(parts, batch_size, seed), batch_size, rows)
    batched = examples.batch(len(rows), drop_remainder=True)[start:]
    return iter(
        batched.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )


def _examples(parts, batch_size, seed):
    """The endless order of a stream's examples."""
    first, *others = parts
    order = grain.MapDataset.range(first.records).seed(seed).shuffle().repeat().random_map(first.load)
    if not others:
        return order
    orders = [order]
    for place, part in enumerate(others, 1):
        # Two equal sources must not be read in the same order.
        part_seed = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
        dataset = grain.MapDataset.range(part.records).seed(part_seed).shuffle().repeat()
        orders.append(dataset.random_map(part.load))
    mixed = grain.MapDataset.mix(orders, [part.weight for part in parts])
    # Grain interleaves in a fixed pattern; mixup, mask groups and batch norm need random neighbours.
    return grain.experimental.WindowShuffleMapDataset(mixed, window_size=batch_size, seed=seed)
