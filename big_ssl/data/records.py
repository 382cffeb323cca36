"""What a source gives: records, and their labels."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Record(NamedTuple):
    """One raw example. image: encoded bytes; texts: {kind: candidates}, e.g. "tags"."""

    image: bytes
    texts: Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Labels:
    """kind: which of a record's texts is its label; names: the classes, in the order of their numbers."""

    kind: str
    names: Sequence[str]

    def number(self, record: Record) -> int:
        """The class of a record. Raises ValueError where it is in none."""
        value = next(iter(record.texts.get(self.kind, ())), None)
        if value in self._numbers:
            return self._numbers[value]
        if isinstance(value, (str, type(None))) or not 0 <= int(value) < len(self.names):
            raise ValueError(f"data: there is a picture whose {self.kind} is {value!r}, which is no class")
        return int(value)

    @functools.cached_property
    def _numbers(self):
        return {name: i for i, name in enumerate(self.names)}


def part(count, share):
    """The positions, in order, of a fraction `share` of `count`, drawn at random, one at least."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")
    if share == 1:
        return range(count)
    rows = np.random.default_rng(0).permutation(count)[: max(1, round(share * count))]
    return np.sort(rows)
