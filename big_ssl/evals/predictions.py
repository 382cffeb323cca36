"""What the predictions of a dense task on one image become: a drawing, a record of JSON, and a file."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from big_ssl.evals import drawings, plots

# Images whose longer side is smaller are enlarged by a whole factor before they are drawn on, so that texts
# fit; larger ones are shrunk, so that a page of photographs loads.
_SMALLEST, _LARGEST = 240, 1_600


class Prediction(NamedTuple):
    """drawing: uint8[H, W, 3]. record: a JSON value. caption: a line. suffix, file: the end of the file's
    name, such as ".npy", and its bytes; "" without a file."""

    drawing: np.ndarray
    record: dict[str, Any]
    caption: str
    suffix: str = ""
    file: bytes = b""


def detections(image: np.ndarray, result: dict[str, np.ndarray], names: Sequence[str]) -> Prediction:
    """The boxes of one image, by Predictor.detect.

    Args:
      image: uint8[H, W, 3].
      result: boxes float32[N, 4], scores float32[N], labels int32[N].
      names: of the classes; () for their numbers.
    """
    boxes, scores, labels = (np.asarray(result[key]) for key in ("boxes", "scores", "labels"))
    canvas = _canvas(image)
    scale = np.tile(np.divide(canvas.shape[1::-1], image.shape[1::-1]), 2)
    drawing = drawings.draw_boxes(canvas, boxes * scale, labels, names, scores)
    objects = [
        dict(box=[float(x) for x in box], score=float(score), label=int(label))
        | (dict(name=names[label]) if 0 <= label < len(names) else {})
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]
    return Prediction(drawing, dict(objects=objects), f"{len(objects):,} boxes")


def class_map(image: np.ndarray, result: np.ndarray, names: Sequence[str]) -> Prediction:
    """The class of each pixel, by Predictor.segment: int[H, W]; image, names: as in `detections`.

    The file is a PNG of 8 bits, or of 16 for classes above 255.
    """
    canvas = _canvas(image)
    drawing = drawings.draw_classes(canvas, _nearest(result, canvas.shape), names)
    numbers, counts = np.unique(result, return_counts=True)
    fractions = {
        (names[n] if n < len(names) else str(n)): float(count / result.size)
        for n, count in zip(numbers.tolist(), counts, strict=True)
    }
    file = plots.png(result.astype(np.uint8 if result.max() < 256 else np.uint16))
    return Prediction(drawing, dict(fractions=fractions), f"{len(numbers):,} classes", ".png", file)


def depth_map(image: np.ndarray, result: np.ndarray, names: Sequence[str] = ()) -> Prediction:
    """The depth of each pixel, by Predictor.depth: float32[H, W]; image: as in `detections`.

    The file is the array, a .npy.
    """
    del names
    canvas = _canvas(image)
    drawing = drawings.draw_depth(canvas, _nearest(result, canvas.shape))
    buffer = io.BytesIO()
    np.save(buffer, result)
    record = dict(nearest=float(result.min()), median=float(np.median(result)), farthest=float(result.max()))
    caption = f"depths from {record['nearest']:.3g} to {record['farthest']:.3g}"
    return Prediction(drawing, record, caption, ".npy", buffer.getvalue())


# {method of a Predictor: its result on one image as a Prediction}.
TASKS: dict[str, Callable[..., Prediction]] = dict(detect=detections, segment=class_map, depth=depth_map)


def _canvas(image):
    """The image in a size to draw on: uint8[h, w, 3]."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > _LARGEST:
        size = [max(1, round(side * _LARGEST / longer)) for side in (width, height)]
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    factor = -(-_SMALLEST // longer) if longer < _SMALLEST else 1
    return _nearest(image, (factor * height, factor * width))


def _nearest(array, shape):
    """[H, W, ...] -> [*shape[:2], ...]: the nearest pixels."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(array.shape[:2], shape[:2], strict=True)
    )
    return array[rows[:, None], columns]
