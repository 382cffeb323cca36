"""A labelled set of images, for zero-shot classification and probes."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from big_ssl.data import chunks, decode, label_sets, sources
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import reading

# The features that k-NN and the linear probe read, by the predictor's method that computes them.
FEATURES = {"pooled": "pooled_features", "images": "encode_image"}


class LabelledSet:
    """The images of a source, each in one class. `names`: the C classes; `imagenet`: as in LabelSet.

    label: the key of the label in the source's records; classes: as in label_sets.build. Raises
    ValueError if the source has no such label, or the classes do not fit it.
    """

    def __init__(self, data: SourceConfig, label: str = "label", classes: str | Sequence[str] = ""):
        self._source = sources.build(data)
        # Equal sets have equal keys in a Predictor's cache.
        self._key = json.dumps([data, label, classes], sort_keys=True, default=repr)
        self._labels = sources.labels(self._source, label)
        self._set = label_sets.build(classes, self._labels.names)
        self.names, self.imagenet = self._set.names, self._set.imagenet

    def batches(
        self,
        function: Callable[[Any], np.ndarray],
        predictor,
        description: str,
        transform: Callable = lambda image: image,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Applies a function to all images that are in a class, batch by batch, on every host.

        Args:
          function: a batch of images, as the predictor's methods take it, -> [n, ...].
          predictor: as in reading.batches.
          description: as in reading.batches.
          transform: as in reading.batches.

        Yields:
          (the function's result [n, ...], classes int[n]).

        Raises:
          ValueError: for an image whose label is none of the classes, or that can't be decoded.
        """
        for images, labels in reading.batches(self._source, self._class, predictor, description, transform):
            rows = [row for row, label in enumerate(labels) if label is not None]
            if rows:
                yield function(images)[rows], np.array([labels[row] for row in rows])

    def __len__(self):
        """The number of images, those without a class included."""
        return len(self._source)

    def image(
        self, index: int, transform: Callable[[Any], np.ndarray], channels: int = 3
    ) -> tuple[np.ndarray, int]:
        """(transform(image), class) of one record, see chunks.load. Raises ValueError for no class."""
        loaded = chunks.load(self._source, self._class, transform, index, channels)
        if loaded is None:
            raise ValueError(f"data: {sources.record_name(self._source, index)} is in none of the classes")
        return loaded

    def split(self, fraction: float) -> tuple["LabelledSet", "LabelledSet"]:
        """(the remaining images, a random `fraction` of them), two sets; see held_out."""
        chosen = held_out(len(self), fraction)
        return self._part(~chosen, f"without {fraction}"), self._part(chosen, f"{fraction} of")

    def _part(self, chosen, key):
        part = copy.copy(self)
        part._source, part._key = _Part(self._source, np.flatnonzero(chosen)), f"{key} {self._key}"
        return part

    def features(self, predictor, kind: str, description: str) -> tuple[np.ndarray, np.ndarray]:
        """(float32[N, W], classes int[N]) of all images. kind: a key of FEATURES."""
        function = getattr(predictor, FEATURES[kind])
        return self.extract_features(function, kind, predictor, description)

    def extract_features(
        self, function: Callable[[Any], np.ndarray], kind: str, predictor, description: str, **options
    ) -> tuple[np.ndarray, np.ndarray]:
        """Applies a function to all images, once for all evaluators with equal sets.

        Args:
          function: as in `batches`.
          kind: names the function in the predictor's cache.
          predictor: as in `batches`.
          description: as in `batches`.
          **options: as in `batches`.

        Returns:
          (the function's results [N, ...], classes int[N]), shared, so not to be written to.
        """
        if (self._key, kind) not in predictor.cache:
            batches = self.batches(function, predictor, description, **options)
            features, labels = zip(*batches, strict=True)
            predictor.cache[self._key, kind] = np.concatenate(features), np.concatenate(labels)
        return predictor.cache[self._key, kind]

    def _class(self, record):
        number = self._labels.number(record)
        label = int(self._set.classes[number])
        if label >= 0:
            return label
        if self._set.partial:
            return None
        name = self._labels.names[number]
        raise ValueError(f"classes: there is an image labelled {name!r}, which is none of the classes")


class _Part(Sequence):
    """Some items of a source. indices: int[N]."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices
        self.decode_options = sources.decode_options(source, decode.EVALUATION)

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self._source[int(self._indices[index])]

    def record_name(self, index: int) -> str:
        """The name of a record in the whole source."""
        return sources.record_name(self._source, int(self._indices[index]))


def held_out(count: int, fraction: float) -> np.ndarray:
    """bool[count], the images for validation: about this fraction, at random with a fixed seed.

    Raises ValueError if one part would be empty.
    """
    chosen = np.random.default_rng(0).random(count) < fraction
    if chosen.all() or not chosen.any():
        raise ValueError(f"validation_fraction is {fraction}; it leaves one part empty")
    return chosen


def labelled_splits(
    kind: str, sources_by_split: Mapping[str, SourceConfig | None], label: str
) -> dict[str, LabelledSet]:
    """The labelled sets of an evaluator.

    Args:
      kind: the evaluator's kind, for messages.
      sources_by_split: {split: its source, or None}.
      label: as in LabelledSet.

    Returns:
      {split: its set} for splits with a source. Raises ValueError if one has other labels than "train".
    """
    sets = {split: LabelledSet(data, label) for split, data in sources_by_split.items() if data}
    for split, data in sets.items():
        if list(data.names) != list(sets["train"].names):
            raise ValueError(f"{kind}: {split} has other labels than train")
    return sets
