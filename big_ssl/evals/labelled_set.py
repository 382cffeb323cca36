"""A labelled set of pictures: what zero-shot classification and probes read."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from big_ssl.data import chunks, sources
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import label_sets, reading


class LabelledSet:
    """The pictures of a source, each in one class. `names`: the C classes; `imagenet`: as in LabelSet.

    label: which kind of the source's texts is the label; classes: as in label_sets.build. Raises
    ValueError where the source has no such label, or the classes do not fit it.
    """

    def __init__(self, data: SourceConfig, label: str = "label", classes: str | Sequence[str] = ""):
        self._source = sources.build(data)
        # What equal sets share.
        self._key = json.dumps([data, label, classes], sort_keys=True, default=repr)
        self._own = sources.labels(self._source, label)
        self._set = label_sets.build(classes, self._own.names)
        self.names, self.imagenet = self._set.names, self._set.imagenet

    def embedded(
        self, see: Callable[[Any], np.ndarray], embedder, what: str, make: Callable = lambda picture: picture
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (what `see` makes of a batch of pictures: [n, ...]; their classes: int[n]), on every host,
        each of which decodes its part of the pictures. Those of no class are left out.

        see: one of the embedder's functions, or what is made of one; make: as in reading.batches. Raises
        ValueError for a picture under a label that is none of the classes, and for one that can't be decoded.
        """
        for pictures, labels in reading.batches(self._source, self._class, embedder, what, make):
            rows = [row for row, label in enumerate(labels) if label is not None]
            if rows:
                yield see(pictures)[rows], np.array([labels[row] for row in rows])

    def __len__(self):
        """How many pictures there are, those of no class included."""
        return len(self._source)

    def picture(self, index: int, make: Callable[[Image.Image], np.ndarray]) -> tuple[np.ndarray, int]:
        """(what `make` makes of it, its class) of one picture. Raises ValueError where it is in no class."""
        loaded = chunks.load(self._source, self._class, make, index)
        if loaded is None:
            raise ValueError(f"data: record {index} is in none of the classes")
        return loaded

    def split(self, fraction: float) -> tuple["LabelledSet", "LabelledSet"]:
        """(the rest, a random `fraction`), each a set of its own; see held_out."""
        held = held_out(len(self), fraction)
        return self._part(~held, f"without {fraction}"), self._part(held, f"{fraction} of")

    def _part(self, chosen, key):
        part = copy.copy(self)
        part._source, part._key = _Part(self._source, np.flatnonzero(chosen)), f"{key} {self._key}"
        return part

    def features(self, embedder, kind: str, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(float32[N, W], int[N]): all pictures by the embedder's "pooled" or "images", and their classes."""
        embed = {"pooled": embedder.pooled, "images": embedder.images}[kind]
        return self.seen_by(embed, kind, embedder, what)

    def seen_by(
        self, see: Callable[[Any], np.ndarray], kind: str, embedder, what: str, **options
    ) -> tuple[np.ndarray, np.ndarray]:
        """(what `see` makes of all pictures, [N, ...]; int[N], their classes), not to be written to.

        Evaluators with equal sets share it: the embedder keeps it under kind, which must name what `see`
        does. see, options: as in `embedded`.
        """
        if (self._key, kind) not in embedder.known:
            found, labels = zip(*self.embedded(see, embedder, what, **options), strict=True)
            embedder.known[self._key, kind] = np.concatenate(found), np.concatenate(labels)
        return embedder.known[self._key, kind]

    def _class(self, record):
        number = self._own.number(record)
        found = int(self._set.classes[number])
        if found >= 0:
            return found
        if self._set.partial:
            return None
        name = self._own.names[number]
        raise ValueError(f"classes: there is a picture labelled {name!r}, which is none of the classes")


class _Part(Sequence):
    """Some items of a source. indices: int[N]."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self._source[int(self._indices[index])]


def held_out(count: int, fraction: float) -> np.ndarray:
    """bool[count], which pictures validate: about this fraction, at random but always alike.

    Raises ValueError where that leaves one part empty.
    """
    held = np.random.default_rng(0).random(count) < fraction
    if held.all() or not held.any():
        raise ValueError(f"validation_fraction is {fraction}; it leaves one part empty")
    return held


def labelled_splits(
    kind: str, given: Mapping[str, SourceConfig | None], label: str
) -> dict[str, LabelledSet]:
    """{split: its set} of those that are given. Raises ValueError, naming the evaluator's kind, where one has
    other labels than "train"."""
    found = {split: LabelledSet(data, label) for split, data in given.items() if data}
    for split, data in found.items():
        if list(data.names) != list(found["train"].names):
            raise ValueError(f"{kind}: {split} has other labels than train")
    return found
