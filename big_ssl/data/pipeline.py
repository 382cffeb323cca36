"""Batches of images and texts by Grain, as a pure function of (seed, step)."""

import functools
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from big_ssl.data import decode, host_views, sources
from big_ssl.data.host_views import HostView
from big_ssl.data.sources import Labels, Record

# How many neighbours may stand in for one bad record before the data counts as unusable.
_MAX_NEIGHBOURS = 100


class BadText(ValueError):
    """A caption that is no text, or that says nothing once tokenised; a label that is no class."""


class LoadExample(grain.transforms.RandomMap):
    """Index -> {view: uint8 array}, text: dict(ids, mask) where there are captions, label: int32[] where
    there are labels, faults: {name: bool}.

    A bad picture, caption or label is replaced by the next record that is good, so that the same
    (seed, step) gives the same batch, and marked in `faults`.

    views: {name: HostView}; captions: {kind: probability} over the kinds of text that a record has,
    {} for none; cache: how many prepared pictures stay in memory, for sets that fit there; labels: the
    classes, None for none.
    """

    def __init__(
        self,
        source,
        tokenizer,
        views: Mapping[str, HostView],
        captions: Mapping[str, float],
        cache: int = 0,
        labels: Labels | None = None,
    ):
        self._source, self._tokenizer, self._captions = source, tokenizer, captions
        self._labels = labels
        self._views = views
        self._prepare = functools.lru_cache(cache)(self._prepared)

    def random_map(self, index: int, rng: np.random.Generator):
        faults = dict(replaced_images=False, replaced_texts=False)
        for offset in range(_MAX_NEIGHBOURS):
            item = self._source[(index + offset) % len(self._source)]
            record = item[rng.integers(len(item))] if isinstance(item, list) else item
            try:
                return self._load(record, rng) | dict(faults=faults)
            except decode.BadImage:
                faults["replaced_images"] = True
            except BadText:
                faults["replaced_texts"] = True
        raise ValueError(f"data: records {index} to {index + _MAX_NEIGHBOURS - 1} are all unusable")

    def _load(self, record: Record, rng):
        rest: dict = dict(text=self._text(record, rng)) if self._captions else {}
        if self._labels:
            rest["label"] = self._label(record)
        prepared = self._prepare(record.image)
        return {name: view.draw(prepared[name], rng) for name, view in self._views.items()} | rest

    def _text(self, record, rng):
        tokens = self._tokenizer([draw_caption(record.texts, self._captions, rng)])
        text = {key: value[0] for key, value in tokens.items()}
        if self._tokenizer.is_empty(text["ids"]):
            raise BadText("nothing left after tokenisation")
        return text

    def _label(self, record):
        try:
            return np.int32(self._labels.number(record))
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
    kinds = [kind for kind in captions if len(texts.get(kind, ()))]
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


def build(config: Mapping, tokenizer) -> tuple[LoadExample, int]:
    """The loader of one stream's records and their number, from its `data` config.

    With the key "label", which kind of label comes with each picture.
    """
    source, views = sources.build(config["source"]), host_views.build(config["views"])
    labels = sources.labels(config["source"], source, config["label"]) if config.get("label") else None
    load = LoadExample(source, tokenizer, views, dict(config["captions"]), config["cache"], labels)
    return load, len(source)
