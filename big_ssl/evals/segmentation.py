"""Intersection over union of a trained segmentation head on images with the classes of their pixels."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from big_ssl.data import chunks, decode, sources
from big_ssl.data.fields.spatial import read_plane
from big_ssl.data.records import BadValue
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import drawings
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.report_sections import EvalSection
from big_ssl.evals.segmentation_metrics import confusion, segmentation_metrics
from big_ssl.parallel import distributed

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
        count = min(_SHOWN, len(self._source))
        indices = [i * len(self._source) // count for i in range(count)]
        shown = list(self._predictions(predictor, indices))
        text = (
            "Each row has an image, the image under the classes of its pixels, and under the predicted "
            "classes. Pixels without a class are not coloured. The images are evenly spaced through the set."
        )
        figure = drawings.class_figure(shown, self._classes, self._ignore)
        return [EvalSection(f"segmentation_{self._name}", f"Segmentation: {self._name}", text, figure)]

    def _predictions(self, predictor, indices) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (image: uint8[H, W, C], truth: int32[H, W], prediction: int32[H, W]).

        Every host reads all images: they are of any sizes, so that no batch of them can be split.
        """
        batches = [indices[start : start + _BATCH] for start in range(0, len(indices), _BATCH)]
        loaded = chunks.decoded(self._source, lambda record: record, np.asarray, batches, predictor.channels)
        with contextlib.closing(loaded):
            for batch in predictor.progress(batches, len(batches), f"{self._name}: classes of pixels"):
                with distributed.raise_on_all_hosts(ValueError):
                    images, records = zip(*next(loaded), strict=True)
                    truths = [self._truth(*x) for x in zip(batch, images, records, strict=True)]
                predicted = predictor.segment(list(images), **self._options)
                yield from zip(images, truths, predicted, strict=True)

    def _truth(self, index, image, record):
        """int32[H, W], self._ignore for no class."""
        options = sources.decode_options(self._source, decode.EVALUATION)
        try:
            plane = read_plane(record, self._key, options)
            if plane.shape != image.shape[:2]:
                raise BadValue(f"{self._key!r} has the shape {plane.shape}, its image {image.shape[:2]}")
            # In int32: 0 - 1 is no uint8.
            plane, first = plane.astype(np.int32), int(self._reduce)
            none = (plane == self._ignore) | (self._reduce & (plane == 0))
            truth = np.where(none, self._ignore, plane - first)
            wrong = truth[~none & ((truth < 0) | (truth >= len(self._classes)))]
            if wrong.size:
                raise BadValue(f"{self._key!r} has a pixel of class {wrong[0] + first}")
        except BadValue as error:
            raise ValueError(f"data: {sources.record_name(self._source, index)}: {error}") from error
        return truth
