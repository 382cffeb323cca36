"""Classes of whole images: one, or several at once."""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from big_ssl.data import records, sources
from big_ssl.data.fields.base import Field, required
from big_ssl.data.records import Labels


@dataclasses.dataclass(frozen=True)
class Label(Field):
    """int32[]: the index of a record's class in its source's classes.

    key: where a record has it, by name or by number.
    """

    key: str = "label"

    counter: ClassVar[str] = "replaced_labels"

    def zeros(self):
        return np.int32(0)

    def load(self, record, draws):
        del draws
        return np.int32(self._labels.number(record))

    def check(self):
        _ = self._labels

    def class_names(self):
        return self._labels.names

    @functools.cached_property
    def _labels(self) -> Labels:
        return sources.labels(self.context.source, self.key)


@dataclasses.dataclass(frozen=True)
class MultiLabel(Field):
    """bool[num_classes]: the classes that a record is in, possibly none.

    key: where a record has a list of their names or numbers; num_classes: the number of the source's classes.
    """

    key: str
    num_classes: int

    counter: ClassVar[str] = "replaced_labels"

    def zeros(self):
        return np.zeros(self.num_classes, bool)

    def load(self, record, draws):
        del draws
        required(record.get(self.key), self.key)
        value = self.zeros()
        for label in records.values(record, self.key):
            value[self._labels.number_of(label)] = True
        return value

    def check(self):
        names = self._labels.names
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}; {self.key!r} of the data has {len(names)}")

    def class_names(self):
        return self._labels.names

    @functools.cached_property
    def _labels(self) -> Labels:
        return sources.labels(self.context.source, self.key)
