"""The classes of a labelled set, and the class of each of its labels.

Training and evaluation name classes by the same rules. ImageNet's test sets have rules of their own:
ImageNet-V2 names its folders by number, to be read as integers; ImageNet-A and -R are classified into the 200
classes that they show, not into all 1000; ObjectNet into the 113 classes that it shares with ImageNet, under
ObjectNet's names; its other images are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from big_ssl.data.prompt_templates import labels_file, read_lines


class LabelSet(NamedTuple):
    """names: C class names for prompts; classes: int[L], the class of each of a set's labels, -1
    for none; partial: whether images whose label has no class are left out; if not, they are an error;
    imagenet: if the classes are some of ImageNet's 1000, their C numbers there."""

    names: Sequence[str]
    classes: np.ndarray
    partial: bool = False
    imagenet: Sequence[int] = ()


class _Named(NamedTuple):
    """names: C class names; keys: {a label of a set: class}; partial, imagenet: as in LabelSet."""

    names: Sequence[str]
    keys: Mapping[str, int]
    partial: bool = False
    imagenet: Sequence[int] = ()


def build(classes: str | Sequence[str], labels: Sequence[str]) -> LabelSet:
    """The LabelSet of an option.

    classes: "" for the labels themselves, a name in LABEL_SETS, a text file of one class name a line or a
    list of them, in the order of the labels. labels: of the set. Raises ValueError if they do not fit.
    """
    if isinstance(classes, str) and classes in LABEL_SETS:
        return _named(classes, labels)
    if not classes:
        return LabelSet([name.replace("_", " ") for name in labels], np.arange(len(labels)))
    names = _read(classes) if isinstance(classes, str) else list(classes)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"classes: {wrong[0]!r} is no text")
    if len(names) != len(labels):
        raise ValueError(f"classes: there are {len(names)} names for the {len(labels)} labels of the data")
    return LabelSet(names, np.arange(len(labels)))


def _named(name, labels):
    named = LABEL_SETS[name]()
    classes = np.array([named.keys.get(label, -1) for label in labels])
    if (classes < 0).all():
        raise ValueError(
            f"classes: none of the {len(labels)} labels of the data, such as {labels[0]!r}, is one of "
            f"{name}'s, such as {next(iter(named.keys))!r}"
        )
    return LabelSet(named.names, classes, named.partial, named.imagenet)


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


def _imagenet_unicl():
    """All 1000 under the names that UniCL was evaluated with (microsoft/UniCL, data/imagenet/constants.py):
    OpenAI's but for the second of the two classes that these call "missile", and of "sunglasses"."""
    imagenet, other = _imagenet(), {744: "projectile", 837: "dark glasses"}
    return imagenet._replace(names=[other.get(i, name) for i, name in enumerate(imagenet.names)])


def _imagenet_part(file):
    """Some of the 1000, in their order; labels as for all of them."""
    imagenet = _imagenet()
    place = {int(number): i for i, number in enumerate(labels_file(file).read_text().split())}
    keys = {key: place[number] for key, number in imagenet.keys.items() if number in place}
    return _Named([imagenet.names[number] for number in place], keys, imagenet=tuple(place))


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
    "imagenet_unicl": _imagenet_unicl,
}
