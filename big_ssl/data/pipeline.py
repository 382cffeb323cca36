"""Batches of images and texts by Grain, as a pure function of (seed, step)."""

import threading
from collections.abc import Mapping, Sequence

import grain
import numpy as np
from absl import logging

from big_ssl import retry
from big_ssl.data import decode, host_views, sources
from big_ssl.data.cache import Cache
from big_ssl.data.host_views import HostView
from big_ssl.data.records import Labels, Record

# How many neighbours may stand in for one bad record before the data counts as unusable.
_MAX_NEIGHBOURS = 100
# How many of them may fail for want of an answer before the whole source counts as gone.
_MAX_UNANSWERED = 3
# How many replaced records a host names.
_NAMED = 10

# What can be wrong with an example: bool each. The first two: its picture, or its text or label, comes from a
# neighbour. missing_examples: there was no neighbour either, and the example is zeros.
DATA_ERRORS = ("replaced_images", "replaced_texts", "missing_examples")


class BadText(ValueError):
    """A caption that is no text, or that says nothing once tokenised; a label that is no class."""


class UnreadableRecord(ValueError):
    """A record that its source can't read. unanswered: for an error that passes elsewhere, and did not."""

    def __init__(self, message: str, unanswered: bool):
        super().__init__(message)
        self.unanswered = unanswered


class ReplacedRecords:
    """Counts the records that a host replaced, and names the first of them in the log."""

    def __init__(self, source: Sequence):
        self._source, self._count, self._lock = source, 0, threading.Lock()

    def add(self, index: int, error: Exception) -> None:
        """Logs the record's name and what is wrong with it: each of the first, then each tenfold."""
        with self._lock:
            self._count += 1
            count = self._count
        if count <= _NAMED:
            logging.warning("data: %s is replaced: %s", sources.record_name(self._source, index), error)
        elif str(count).strip("0") == "1":  # 100, 1,000, ...
            name = sources.record_name(self._source, index)
            logging.warning("data: %d records are replaced so far; the last: %s: %s", count, name, error)


class LoadExample(grain.transforms.RandomMap):
    """Index -> {view: uint8 array}, text: dict(ids, mask) where there are captions, label: int32[] where
    there are labels, data_errors: {name: bool}, see DATA_ERRORS.

    A record that can't be read, or whose picture, caption or label is bad, is replaced by the next that is
    good, so that the same (seed, step) gives the same batch, and marked in `data_errors`. Where none of
    the next hundred is good the arrays are zeros, marked as missing: that the run can't go on is for
    all hosts to find out together.

    views: {name: HostView}; captions: {kind: probability} over the kinds of text that a record has,
    {} for none; cache_mib: the memory for prepared pictures, which are kept until it is full; labels: the
    classes, None for none.
    """

    def __init__(
        self,
        source,
        tokenizer,
        views: Mapping[str, HostView],
        captions: Mapping[str, float],
        cache_mib: float = 0,
        labels: Labels | None = None,
    ):
        self.source, self._tokenizer, self.captions = source, tokenizer, captions
        self.labels = labels
        self._views = views
        self._cache = Cache(int(cache_mib * 2**20))
        self._replaced = ReplacedRecords(source)
        self._gone = False

    def random_map(self, index: int, rng: np.random.Generator):
        data_errors, unanswered = dict.fromkeys(DATA_ERRORS, False), 0
        for position in (np.arange(_MAX_NEIGHBOURS) + index) % len(self.source):
            if self._gone:
                break
            try:
                return self.load(int(position), rng, patient=not unanswered) | dict(data_errors=data_errors)
            except BadText as error:
                data_errors["replaced_texts"] = True
                self._replaced.add(int(position), error)
            except (decode.BadImage, UnreadableRecord) as error:
                data_errors["replaced_images"] = True
                self._replaced.add(int(position), error)
                unanswered += isinstance(error, UnreadableRecord) and error.unanswered
                self._gone = self._gone or unanswered >= _MAX_UNANSWERED
        logging.error("data: neither record %d nor any of its neighbours can be used", index)
        return self._zeros() | dict(data_errors=data_errors | dict(missing_examples=True))

    def load(self, index: int, rng: np.random.Generator, patient: bool = True) -> dict:
        """The example of one record, without data_errors. patient: wait for errors of the storage to pass.

        Raises UnreadableRecord, decode.BadImage or BadText.
        """
        item = self._read(index, patient)
        record = item[rng.integers(len(item))] if isinstance(item, list) else item
        return self._load(record, rng)

    def _read(self, index, patient):
        try:
            return retry.call(self.source.__getitem__, index) if patient else self.source[index]
        except Exception as error:  # each storage and each format has its own
            raise UnreadableRecord(retry.one_line(error), retry.is_transient(error)) from error

    def _zeros(self):
        example: dict = {name: np.zeros(view.shape, np.uint8) for name, view in self._views.items()}
        if self.captions:
            example["text"] = {key: np.zeros_like(value[0]) for key, value in self._tokenizer([""]).items()}
        if self.labels:
            example["label"] = np.int32(0)
        return example

    def _load(self, record: Record, rng):
        rest: dict = dict(text=self._text(record, rng)) if self.captions else {}
        if self.labels:
            rest["label"] = self._label(record)
        prepared = self._cache.get(record.image, self._prepared)
        return {name: view.draw(prepared[name], rng) for name, view in self._views.items()} | rest

    def _text(self, record, rng):
        tokens = self._tokenizer([draw_caption(record.texts, self.captions, rng)])
        text = {key: value[0] for key, value in tokens.items()}
        if self._tokenizer.is_empty(text["ids"]):
            raise BadText("nothing left after tokenisation")
        return text

    def _label(self, record):
        try:
            return np.int32(self.labels.number(record))
        except ValueError as error:
            raise BadText(str(error)) from error

    def _prepared(self, encoded):
        return decode.opened(
            encoded, lambda image: {name: view.prepare(image) for name, view in self._views.items()}
        )


def draw_caption(texts: Mapping[str, Sequence], captions: Mapping[str, float], rng) -> str:
    """One text of a record: a kind by its probability among those present, then a candidate.

    Of "tags" it draws a random subset in random order, as one text. Raises BadText where the
    record has none, or the one drawn is not a string.
    """
    kinds = [kind for kind, weight in captions.items() if weight and len(texts.get(kind, ()))]
    if not kinds:
        raise BadText("no caption")
    weights = np.array([captions[kind] for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    candidates = texts[kind]
    count = rng.integers(1, len(candidates) + 1) if kind == "tags" else 1
    drawn = [candidates[i] for i in rng.permutation(len(candidates))[:count]]
    if not all(isinstance(text, str) for text in drawn):
        raise BadText(f"a caption of type {type(drawn[0]).__name__}")
    # Half an emoji, as a caption cut short in JSON leaves it, is no Unicode and can't be tokenised.
    return " ".join(drawn).encode(errors="ignore").decode()


class _Rows(grain.MapDataset):
    """Of every `batch_size` examples of the parent, those at positions `rows`, int[R]."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self):
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        batch, position = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + int(self._rows[position])]


def batches(
    load, records: int, batch_size: int, seed: int, start: int, threads: int, rows: np.ndarray | None = None
) -> grain.DatasetIterator:
    """Batches from step `start` on, for ever, shuffled anew each epoch.

    load: a grain RandomMap of record indices; batch_size: of all processes together;
    rows: int[R], which rows of the global batches this process loads, None for all of them.
    An example has the same row on any number of processes, so that what depends on the row
    (dropout, flips, the groups of batch norm) does not depend on them.
    """
    rows = np.arange(batch_size) if rows is None else rows
    order = grain.MapDataset.range(records).seed(seed).shuffle().repeat()
    examples = _Rows(order.random_map(load), batch_size, rows)
    batched = examples.batch(len(rows), drop_remainder=True)[start:]
    return iter(
        batched.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )


def build(config: Mapping, tokenizer) -> LoadExample:
    """The loader of one stream's records, from its `data` config.

    With the key "label", which kind of label comes with each picture.
    """
    source, views = sources.build(config["source"]), host_views.build(config["views"])
    labels = sources.labels(config["source"], source, config["label"]) if config.get("label") else None
    return LoadExample(source, tokenizer, views, dict(config["captions"]), config["cache_mib"], labels)
