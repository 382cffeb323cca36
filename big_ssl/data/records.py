"""A source's records, and the classes that label them."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# One raw example: {key: raw value}. Images are encoded bytes; a text is one string, bytes, or a list of such.
Record = Mapping[str, Any]

# The key of a record's image, for readers that no field names another.
IMAGE = "image"


class BadValue(ValueError):
    """A value of one record that can't be used; the record is then replaced."""


def values(record: Record, key: str) -> list:
    """A record's candidates under a key: none, one or several, bytes decoded as UTF-8.

    Other types than bytes are unchanged.
    """
    value = record.get(key)
    if value is None:
        return []
    several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)
    candidates = list(value) if several else [value]
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in candidates]


@dataclasses.dataclass(frozen=True)
class Labels:
    """key: where a record has its label; names: the classes, in the order of their numbers."""

    key: str
    names: Sequence[str]

    def number(self, record: Record) -> int:
        """The class of a record. Raises BadValue if it has no class."""
        return self.number_of(next(iter(values(record, self.key)), None))

    def number_of(self, value) -> int:
        """The class of a name, or of a number as text or integer. Raises BadValue for any other value."""
        try:
            if value in self._numbers:
                return self._numbers[value]
            number = operator.index(value)
        except TypeError:  # neither a name nor an integer
            number = -1
        if not 0 <= number < len(self.names):
            raise BadValue(f"data: there is an image whose {self.key} is {value!r}, which is no class")
        return number

    @functools.cached_property
    def _numbers(self):
        return {name: i for i, name in enumerate(self.names)}


def part(count, fraction):
    """Indices below `count`, sorted: a random `fraction` of them, at least one."""
    if not 0 < fraction <= 1:
        raise ValueError(f"share is {fraction}; it must lie in (0, 1]")
    if fraction == 1:
        return range(count)
    rows = np.random.default_rng(0).permutation(count)[: max(1, round(fraction * count))]
    return np.sort(rows)
