"""COCO's average precision of boxes, by faster-coco-eval, whose numbers are those of pycocotools."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# COCO's 80 categories have ids up to 90 in its files, in the order of their numbers here.
_NO_CATEGORY = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _NO_CATEGORY)

# {metric: (area range, IoU threshold or None for the mean over 0.5, 0.55, ..., 0.95)}.
_METRICS = {
    "AP": ("all", None),
    "AP50": ("all", 0.5),
    "AP75": ("all", 0.75),
    "AP_small": ("small", None),
    "AP_medium": ("medium", None),
    "AP_large": ("large", None),
}


class Truth(NamedTuple):
    """The annotated boxes of an image.

    boxes: float[N, 4], (left, top, right, bottom) in pixels; labels: int[N]; crowd: bool[N], boxes around
    many objects, within which detections count neither as right nor as wrong; area: float[N], in pixels, of
    the objects, which decides whether they are small, medium or large.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    @classmethod
    def of(cls, boxes, labels, crowd=None, area=None) -> "Truth":
        """From lists; without crowds, and with the area of each box, unless they are given."""
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        return cls(
            boxes,
            np.asarray(labels, int),
            np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool),
            sides.prod(1) if area is None else np.asarray(area, np.float64),
        )


class Precisions:
    """Precisions at 101 recalls, by IoU threshold, category and area. See `metrics`."""

    def __init__(self, truths: Mapping[int, Truth], detections: Mapping[int, Mapping], classes: int):
        """Matches detections with the annotated boxes.

        Args:
          truths: {image's id: Truth}, images without boxes included.
          detections: {image's id: dict(boxes: float[n, 4] as in Truth, scores: float[n], labels: int[n])}.
          classes: C, labels are below it.

        Raises:
          ValueError: without faster-coco-eval.
        """
        evaluation = _evaluation(_dataset(truths, classes), results(detections, range(classes)))
        # [thresholds, recalls, C, areas, maximal detections], -1 for a category without boxes in an area.
        self._values = np.asarray(evaluation.eval["precision"])[..., -1]
        self._areas = list(evaluation.params.areaRngLbl)
        self._thresholds = np.asarray(evaluation.params.iouThrs)

    def metrics(self, labels: Sequence[int] | None = None) -> dict[str, float]:
        """AP, AP50, AP75, AP_small, AP_medium and AP_large, in [0, 1]: means over categories that have boxes.

        labels: of the categories that count, None for all. A metric without any box is left out.
        """
        values = {name: self.mean(area, threshold, labels) for name, (area, threshold) in _METRICS.items()}
        return {name: value for name, value in values.items() if value is not None}

    def mean(self, area: str, threshold: float | None, labels: Sequence[int] | None) -> float | None:
        """The mean precision of an area range, at one IoU threshold or at all, None without any box."""
        values = self._values[..., self._areas.index(area)]
        if threshold is not None:
            values = values[np.isclose(self._thresholds, threshold)]
        values = values if labels is None else values[..., list(labels)]
        values = values[values > -1]
        return float(values.mean()) if values.size else None


def results(detections: Mapping[int, Mapping], category_ids: Sequence[int]) -> list[dict]:
    """Detections as COCO's results file has them, which its test server takes.

    detections: as in Precisions. category_ids: of each label. Boxes are (left, top, width, height).
    """
    rows = []
    for image_id, objects in detections.items():
        boxes = np.asarray(objects["boxes"], np.float64).reshape(-1, 4)
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        for box, score, label in zip(boxes.tolist(), objects["scores"], objects["labels"], strict=True):
            category = category_ids[int(label)]
            rows.append(dict(image_id=image_id, category_id=category, bbox=box, score=float(score)))
    return rows


def _dataset(truths, classes):
    """The annotations as COCO's file has them; ids of annotations begin at 1, since 0 is no match."""
    annotations = []
    for image_id, truth in truths.items():
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        boxes = np.concatenate([truth.boxes[:, :2], sides], 1).tolist()
        for box, label, crowd, area in zip(boxes, truth.labels, truth.crowd, truth.area, strict=True):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=int(label),
                    bbox=box,
                    iscrowd=int(crowd),
                    area=float(area),
                )
            )
    return dict(
        images=[dict(id=image_id) for image_id in truths],
        annotations=annotations,
        categories=[dict(id=i, name=str(i)) for i in range(classes)],
    )


def _evaluation(dataset, detections):
    coco, evaluator = package()
    truths = coco(dataset)
    evaluation = evaluator(truths, truths.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


@functools.cache
def package():
    """(COCO, COCOeval_faster) of faster-coco-eval. Raises ValueError if it is not installed."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ValueError("detection needs faster-coco-eval: pip install 'big-ssl[eval]'") from error
    return COCO, COCOeval_faster
