"""The evaluation sets of the embedded emoji: unseen styles, unseen concepts, with flags or without."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from big_ssl.data import chunks, emoji_drawings, preprocessing, sources

# The suffixes of the subsets that results are reported for, see `subsets`.
SPLITS = ("", "_no_flags", "_unseen", "_unseen_no_flags")


@dataclasses.dataclass(frozen=True)
class NamedImages:
    """Images with one right name each.

    images: uint8[N, H, W, 3]; names: M texts; labels: int[N] into names; unseen, flag:
    bool[M], whether a name's concept was held out of training, and whether it is a flag.
    """

    images: np.ndarray
    names: Sequence[str]
    labels: np.ndarray
    unseen: np.ndarray
    flag: np.ndarray

    def positives(self, images: np.ndarray, names: np.ndarray) -> np.ndarray:
        """bool[n, m]: right pairs among the chosen images (bool[N]) and names (bool[M])."""
        return self.labels[images, None] == np.flatnonzero(names)[None]


def load(style: str, preprocess: Callable[[np.ndarray], np.ndarray]) -> NamedImages:
    """All drawings of one style, against the names of every concept in the embedded set.

    preprocess: uint8[1, H, W, 3] -> uint8[1, S, S, 3].
    """
    source, concepts = sources.EmojiPairs([style]), _concepts()
    images = load_images(source, preprocess)
    return NamedImages(
        images=images,
        names=[row["label"] for row in concepts],
        labels=_labels(source),
        unseen=np.array([emoji_drawings.is_held_out(row["unified"]) for row in concepts]),
        flag=np.array([row["category"] == "Flags" for row in concepts]),
    )


def load_images(source: sources.EmojiPairs, preprocess: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8[N, S, S, 3]: a source's images, preprocessed as in `load`."""
    return np.concatenate([images for images, _ in chunks.chunks(source, lambda _: True, preprocess)])


def subsets(data: NamedImages) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (suffix, images: bool[N], names: bool[M]) of each subset.

    Without flags, flags are neither queries nor candidates. A subset of unseen concepts restricts only the
    images, so that they compete with every name, seen ones included.
    """
    all_names, no_flags = np.ones_like(data.flag), ~data.flag
    queries = (all_names, no_flags, data.unseen, data.unseen & no_flags)
    candidates = (all_names, no_flags, all_names, no_flags)
    for suffix, images, names in zip(SPLITS, queries, candidates, strict=True):
        yield suffix, images[data.labels], names


def pixel_scores(style: str, training_styles: Sequence[str]) -> np.ndarray:
    """Scores of the pixel baseline, without any learning: float[N, M].

    Minus the distance from each image of a style to the nearest training image of each concept, on 16 x 16
    mean-free pixels; -inf for unseen concepts. Both are whole drawings, downsampled without a model's crop,
    which would lower the baseline.
    """
    train, labels = _training_drawings(tuple(training_styles))
    queries = _pixels(sources.EmojiPairs([style]))
    distances = (queries**2).sum(1)[:, None] - 2 * queries @ train.T + (train**2).sum(1)
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    scores = np.full((len(queries), len(_concepts())), -np.inf, np.float32)
    scores[:, present] = -np.minimum.reduceat(distances[:, order], starts, axis=1)
    return scores


@functools.cache  # the same for every evaluated style
def _training_drawings(styles):
    """(float32[T, 768], int[T]): pixels and labels of the training drawings."""
    source = sources.EmojiPairs(styles, "seen")
    return _pixels(source), _labels(source)


def _labels(source):
    """int[N]: the concept of each drawing of a source."""
    index = {row["unified"]: i for i, row in enumerate(_concepts())}
    return np.array([index[row["unified"]] for row in source.rows])


@functools.cache
def _concepts():
    """A row for each concept, in a fixed order: twemoji draws them all."""
    return sources.EmojiPairs(["twemoji"]).rows


def _pixels(source):
    images = load_images(source, functools.partial(preprocessing.resize, size=16, how="crop"))
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    return flat - flat.mean(1, keepdims=True)
