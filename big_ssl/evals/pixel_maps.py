"""Maps of pixels, such as classes or depths: resized, and read beside the predictions of a whole set."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from big_ssl.data import chunks, sources
from big_ssl.data.records import BadValue, Record
from big_ssl.parallel import distributed


def resize_map(x: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """float32[h, w, ...] -> float32[*sides, ...], bilinear, not antialiased, as by PyTorch's interpolate."""
    for axis, side in enumerate(sides):
        if x.shape[axis] != side:
            x = _interpolated(x, axis, side)
    return x


def _interpolated(x, axis, new):
    """x with `new` entries along an axis: interpolates between the centres of neighbouring pixels."""
    old = x.shape[axis]
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.minimum(places.astype(int), max(old - 2, 0))
    weights = np.float32(places - below).reshape(-1, *[1] * (x.ndim - 1 - axis))
    return x.take(below, axis) * (1 - weights) + x.take(np.minimum(below + 1, old - 1), axis) * weights


def evenly_spaced(count: int, total: int) -> list[int]:
    """`count` indices below `total`, or all if there are fewer."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def predictions(
    source: Sequence[Record],
    indices: Sequence[int],
    size: int,
    truth: Callable[[np.ndarray, Record], np.ndarray],
    predict: Callable[[list[np.ndarray]], list[np.ndarray]],
    predictor,
    description: str,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Iterates over records of a set with their predictions.

    Every host reads all images: they are of any sizes, so that no batch of them can be split.

    Args:
      source: the records.
      indices: of those to read.
      size: how many are decoded and predicted at once.
      truth: (uint8[H, W, C], a record) -> its map. Raises BadValue for one that can't be used.
      predict: a method of the predictor, of images of any sizes.
      predictor, description: for the progress, as in Predictor.progress.

    Yields:
      (uint8[H, W, C], what `truth` returned, the prediction).

    Raises:
      ValueError: on all hosts, naming a record that can't be read, decoded or used.
    """
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    loaded = chunks.decoded(source, lambda record: record, np.asarray, batches, predictor.channels)
    with contextlib.closing(loaded):
        for batch in predictor.progress(batches, len(batches), description):
            with distributed.raise_on_all_hosts(ValueError):
                images, records = zip(*next(loaded), strict=True)
                truths = [
                    _named(source, index, truth, image, record)
                    for index, image, record in zip(batch, images, records, strict=True)
                ]
            yield from zip(images, truths, predict(list(images)), strict=True)


def _named(source, index, truth, *arguments):
    try:
        return truth(*arguments)
    except BadValue as error:
        raise ValueError(f"data: {sources.record_name(source, index)}: {error}") from error
