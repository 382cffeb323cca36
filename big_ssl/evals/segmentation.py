"""Intersection over union of a trained segmentation head on images with the classes of their pixels."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from big_ssl.data import decode, sources
from big_ssl.data.fields.spatial import check_classes, from_zero, read_plane
from big_ssl.data.records import BadValue
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import drawings, pixel_maps
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.report_sections import EvalSection
from big_ssl.evals.segmentation_metrics import confusion, segmentation_metrics

# Images that are decoded at once, and images that the report shows.
_BATCH, _SHOWN = 16, 6


class Segmentation(Evaluator):
    """Compares the classes of all pixels of a set, in one confusion matrix.

    Args:
      data: the source.
      key: where its records have the classes: an encoded image of one channel, or an array [H, W].
        Predictions are made for the image's size, so the two must be equal.
      classes: their names, in the order of their numbers; or how many, to be named by their numbers; () for
        those that the source lists for the key.
      ignore: the number for no class; such pixels do not count, whatever is predicted there.
      reduce_zero_label: whether 0 in a record is no class, and 1 the class 0, as in ADE20K's files.
      per_class: whether the IoU of each class is a metric.
      window, stride, scales, flip: as in Predictor.segment.
    """

    requires = ("segment",)

    def __init__(
        self,
        data: SourceConfig,
        key: str = "mask",
        classes: Sequence[str] | int = (),
        ignore: int = 255,
        reduce_zero_label: bool = False,
        per_class: bool = True,
        window: int | None = None,
        stride: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        *,
        name: str,
    ):
        self._source, self._name, self._key = sources.build(data), name, key
        names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        self._classes = names or tuple(sources.labels(self._source, key).names)
        self._ignore, self._reduce, self._per_class = ignore, reduce_zero_label, per_class
        self._options = dict(window=window, stride=stride, scales=tuple(scales), flip=flip)

    def check(self, predictor) -> None:
        """Raises ValueError if the head has another number of classes."""
        head = predictor.system.terms[predictor.system.provider("segment")].objective.head
        if head.classes != len(self._classes):
            raise ValueError(
                f"segmentation: the data has {len(self._classes)} classes, the head {head.classes}"
            )

    def metrics(self, predictor) -> dict[str, float]:
        """{"segmentation/<name>/<metric>": value}: miou, pixel_accuracy, class_accuracy, and iou_<class>.

        Raises ValueError if no pixel has a class.
        """
        matrix = np.zeros((len(self._classes),) * 2, np.int64)
        for _, truth, predicted in self._predictions(predictor, range(len(self._source))):
            matrix += confusion(truth, predicted, len(self._classes), self._ignore)
        if not matrix.any():
            raise ValueError(f"segmentation: no pixel of {self._key!r} has a class")
        metrics, per_class = segmentation_metrics(matrix)
        if self._per_class:
            ious = zip(self._classes, per_class, strict=True)
            metrics |= {f"iou_{name}": iou for name, iou in ious if not np.isnan(iou)}
        return {f"segmentation/{self._name}/{metric}": float(value) for metric, value in metrics.items()}

    def sections(self, predictor) -> list[EvalSection]:
        """Images under their classes and under the predicted ones, with a legend."""
        indices = pixel_maps.evenly_spaced(_SHOWN, len(self._source))
        shown = list(self._predictions(predictor, indices))
        text = (
            "Each row has an image, the image under the classes of its pixels, and under the predicted "
            "classes. Pixels without a class are not coloured. The images are evenly spaced through the set."
        )
        figure = drawings.class_figure(shown, self._classes, self._ignore)
        return [EvalSection(f"segmentation_{self._name}", f"Segmentation: {self._name}", text, figure)]

    def _predictions(self, predictor, indices) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (image: uint8[H, W, C], truth: int32[H, W], prediction: int32[H, W])."""
        predict = functools.partial(predictor.segment, **self._options)
        description = f"{self._name}: classes of pixels"
        return pixel_maps.predictions(
            self._source, indices, _BATCH, self._truth, predict, predictor, description
        )

    def _truth(self, image, record):
        """int32[H, W], self._ignore for no class."""
        plane = read_plane(record, self._key, sources.decode_options(self._source, decode.EVALUATION))
        if plane.shape != image.shape[:2]:
            raise BadValue(f"{self._key!r} has the shape {plane.shape}, its image {image.shape[:2]}")
        first = int(self._reduce)
        check_classes(plane, self._key, len(self._classes), self._ignore, first)
        return from_zero(plane, self._ignore, first)
