"""A labelled set of pictures: what zero-shot classification and probes read."""

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from big_ssl.data import chunks, sources
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import label_sets


class LabelledSet:
    """The pictures of a source, each in one class. `names`: the C classes.

    label: which kind of the source's texts is the label; classes: as in label_sets.build. Raises
    ValueError where the source has no such label, or the classes do not fit it.
    """

    def __init__(self, data: SourceConfig, label: str = "label", classes: str | Sequence[str] = ""):
        self._source = sources.build(data)
        # What equal sets share.
        self._key = json.dumps([data, label, classes], sort_keys=True, default=repr)
        self._own = sources.labels(data, self._source, label)
        self._set = label_sets.build(classes, self._own.names)
        self.names = self._set.names

    def chunks(self, embedder, what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (uint8[n, S, S, 3], int[n], the classes), prepared as the embedder wants pictures.

        Raises ValueError for a picture under a label that is none of the classes.
        """
        total = -(-len(self._source) // chunks.CHUNK)
        pairs = chunks.chunks(self._source, self._class, embedder.prepare)
        for images, labels in embedder.track(pairs, total, what):
            yield images, np.array(labels)

    def features(self, embedder, kind: str, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(float32[N, W], int[N]): all pictures by the embedder's "pooled" or "images", and their classes."""
        embed = {"pooled": embedder.pooled, "images": embedder.images}[kind]
        return self.seen_by(embed, kind, embedder, what)

    def seen_by(
        self, see: Callable[[np.ndarray], np.ndarray], kind: str, embedder, what: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """(what `see` makes of all pictures, [N, ...]; int[N], their classes), not to be written to.

        Evaluators with equal sets share it: the embedder keeps it under kind, which must name what `see`
        does.
        """
        if (self._key, kind) not in embedder.known:
            parts = [(see(images), labels) for images, labels in self.chunks(embedder, what)]
            found, labels = zip(*parts, strict=True)
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
