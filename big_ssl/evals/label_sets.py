"""Which classes a labelled set is classified into, and which of them each of its own labels is.

The rules of ImageNet's test sets: ImageNet-V2 names its folders by number, to be read as integers;
ImageNet-A and -R are classified into the 200 classes that they show, not into all 1000; ObjectNet
into the 113 classes that it shares with ImageNet, under its own names, its other pictures left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from big_ssl.evals.prompts import labels_file, read_lines


class LabelSet(NamedTuple):
    """names: C class names for prompts; classes: int[L], the class of each of a set's own labels, -1
    for none; partial: whether pictures under labels without a class are left out, rather than wrong;
    imagenet: where the classes are some of ImageNet's 1000, their C numbers there."""

    names: Sequence[str]
    classes: np.ndarray
    partial: bool = False
    imagenet: Sequence[int] = ()


class _Named(NamedTuple):
    """names: C class names; keys: {one of a set's own labels: class}; the rest as in LabelSet."""

    names: Sequence[str]
    keys: Mapping[str, int]
    partial: bool = False
    imagenet: Sequence[int] = ()


def build(classes: str | Sequence[str], own: Sequence[str]) -> LabelSet:
    """The LabelSet that an option names, for a set whose own labels are `own`.

    classes: "" for the own labels, a name in LABEL_SETS, a text file of one class name a line or a
    list of them, in the order of the own labels. Raises ValueError where they do not fit.
    """
    if isinstance(classes, str) and classes in LABEL_SETS:
        return _named(classes, own)
    if not classes:
        return LabelSet([name.replace("_", " ") for name in own], np.arange(len(own)))
    names = _read(classes) if isinstance(classes, str) else list(classes)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"classes: {wrong[0]!r} is no text")
    if len(names) != len(own):
        raise ValueError(f"classes: there are {len(names)} names for the {len(own)} labels of the data")
    return LabelSet(names, np.arange(len(own)))


def _named(name, own):
    known = LABEL_SETS[name]()
    classes = np.array([known.keys.get(label, -1) for label in own])
    if (classes < 0).all():
        raise ValueError(
            f"classes: none of the {len(own)} labels of the data, such as {own[0]!r}, is one of {name}'s, "
            f"such as {next(iter(known.keys))!r}"
        )
    return LabelSet(known.names, classes, known.partial, known.imagenet)


def _read(path):
    try:
        return read_lines(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"classes: {path!r} is neither a file nor one of {', '.join(LABEL_SETS)}"
        ) from error


def _imagenet():
    """All 1000; a label is a WordNet id, or the class's number as text."""
    ids, names = _table("imagenet.tsv")
    keys = {key: i for i, key in enumerate(ids)}
    return _Named(names, keys | {str(i): i for i in range(len(ids))})


def _imagenet_part(file):
    """Some of the 1000, in their order; labels as for all of them."""
    every = _imagenet()
    place = {int(number): i for i, number in enumerate(labels_file(file).read_text().split())}
    keys = {key: place[number] for key, number in every.keys.items() if number in place}
    return _Named([every.names[number] for number in place], keys, imagenet=tuple(place))


def _objectnet():
    folders, names = _table("objectnet.tsv")
    return _Named(names, {folder: i for i, folder in enumerate(folders)}, partial=True)


def _table(file):
    lines = labels_file(file).read_text(encoding="utf-8").splitlines()
    keys, names = zip(*(line.split("\t") for line in lines), strict=True)
    return keys, names


LABEL_SETS: dict[str, Callable[[], _Named]] = {
    "imagenet": _imagenet,
    "imagenet_a": lambda: _imagenet_part("imagenet_a.txt"),
    "imagenet_r": lambda: _imagenet_part("imagenet_r.txt"),
    "objectnet": _objectnet,
}
