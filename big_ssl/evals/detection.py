"""COCO's average precision of a trained detector on images with boxes."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from big_ssl import io
from big_ssl.data import bands, chunks, records, sources
from big_ssl.data.fields.spatial import BOX_ORDERS, xyxy
from big_ssl.data.records import Record
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import coco_metrics, drawings, plots, reading
from big_ssl.evals.coco_metrics import COCO_CATEGORY_IDS, Precisions, Truth
from big_ssl.evals.detect_method import Detections, by_image
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.report_sections import EvalSection

# Images that the report shows, and the lowest score and the number of boxes that it draws in each.
_SHOWN, _SHOWN_SCORE, _SHOWN_BOXES = 6, 0.3, 12


class Annotation(NamedTuple):
    """Where a source's records have their boxes.

    boxes, label, crowd, area, image_id: keys, "" for none: boxes [N, 4], their classes, whether they are
    around many objects, the objects' pixels (else the boxes'), and the image's number (else the record's).
    order, normalized: as in data.fields.spatial.Boxes.
    """

    boxes: str
    label: str
    crowd: str
    area: str
    image_id: str
    order: str
    normalized: bool


class Detection(Evaluator):
    """AP, AP50, AP75, and AP of small, medium and large objects, as COCO defines them.

    Args:
      data: the source.
      boxes, label, crowd, area, image_id, order, normalized: see Annotation.
      by_text: whether text classifies the boxes, by the names of the source's classes; see Predictor.detect.
      templates: of these names.
      seen: names of the classes of training; AP50 of these and of the others are then also measured.
      score_threshold, max_detections: as in Predictor.detect.
      results: a file to write, of detections as COCO's test server takes them; "" for none.
      category_ids: of the classes in that file: "coco" for its 80 classes, "" for 1, 2, ....
    """

    requires: tuple[str, ...] = ("detect",)

    def __init__(
        self,
        data: SourceConfig,
        boxes: str = "objects/bbox",
        label: str = "objects/label",
        crowd: str = "",
        area: str = "",
        image_id: str = "",
        order: str = "yxyx",
        normalized: bool = True,
        by_text: bool = False,
        templates: str | Sequence[str] = ("{}",),
        seen: Sequence[str] = (),
        score_threshold: float = 0.05,
        max_detections: int = 100,
        results: str = "",
        category_ids: str = "",
        *,
        name: str,
    ):
        coco_metrics.package()  # its absence is an error now, not at the first evaluation
        if order not in BOX_ORDERS:
            raise ValueError(f"detection: order is {order!r}; use {', '.join(BOX_ORDERS)}")
        self._source, self._name = sources.build(data), name
        self._keys = Annotation(boxes, label, crowd, area, image_id, order, normalized)
        _check_keys(self._keys, self._source[0])
        self._labels = sources.labels(self._source, label)
        self._names = list(self._labels.names)
        self._by_text, self._templates = by_text, templates
        self._limits = (score_threshold, max_detections)
        self._results, self._category_ids = results, _category_ids(category_ids, len(self._names))
        if unknown := [x for x in seen if x not in self._names]:
            raise ValueError(f"detection: seen has {unknown[0]!r}, which is none of {', '.join(self._names)}")
        self._seen = [self._names.index(x) for x in seen]
        if by_text:
            self.requires = ("detect", "encode_image", "encode_text", "zero_shot")

    def check(self, predictor) -> None:
        """Raises ValueError if the head has another number of classes."""
        objective = _objective(predictor)
        if self._by_text or objective.class_agnostic:
            return
        if objective.head.classes != len(self._names):
            raise ValueError(
                f"detection: the data has {len(self._names)} classes, the head {objective.head.classes}"
            )

    def metrics(self, predictor) -> dict[str, float]:
        """{"detection/<name>/<metric>": fraction}. A class-agnostic head is measured with one class."""
        truths, detections = self._compared(predictor)
        one_class = _objective(predictor).class_agnostic and not self._by_text
        precisions = Precisions(truths, detections, 1 if one_class else len(self._names))
        metrics = precisions.metrics()
        if self._seen and not one_class:
            parts = dict(seen=self._seen, unseen=[i for i in range(len(self._names)) if i not in self._seen])
            means = {f"AP50_{part}": precisions.mean("all", 0.5, labels) for part, labels in parts.items()}
            metrics |= {key: value for key, value in means.items() if value is not None}
        if self._results and jax.process_index() == 0:
            rows = coco_metrics.results(detections, self._category_ids)
            io.write_atomically(io.as_path(self._results), json.dumps(rows).encode())
        return {f"detection/{self._name}/{metric}": value for metric, value in metrics.items()}

    def sections(self, predictor) -> list[EvalSection]:
        """Images with their boxes, and with those that were detected."""
        indices = sorted({int(i) for i in np.linspace(0, len(self._source) - 1, _SHOWN)})
        loaded = [self._load(i, predictor.channels) for i in indices]
        images, limits = [image for image, _ in loaded], self._limits
        predicted = predictor.detect(images, self._class_names(), *limits, templates=self._templates)
        one_class = _objective(predictor).class_agnostic and not self._by_text
        names = ["object"] if one_class else self._names
        columns = [
            (_drawn(image, truth._asdict(), self._names), _drawn(image, _best(detections), names))
            for (image, truth), detections in zip(loaded, predicted, strict=True)
        ]
        rows = [[plots.Tile(image) for image in row] for row in zip(*columns, strict=True)]
        dataset = self._name.replace("_", " ")
        text = (
            "Above, images with their annotated boxes; below, the boxes that the model detects, with their "
            f"scores: of each image the best one, and up to {_SHOWN_BOXES} of {_SHOWN_SCORE} or more. "
            + ("The names of the classes are texts, to which boxes are compared. " if self._by_text else "")
            + "The images are evenly spaced through the set, failures included."
        )
        title = f"Detected objects, {dataset}"
        return [EvalSection(f"detection_{self._name}", title, text, plots.tiles(rows))]

    def _class_names(self):
        return self._names if self._by_text else None

    def _compared(self, predictor) -> tuple[dict[int, Truth], dict[int, Detections]]:
        """({image: Truth}, {image: detections}), the same on all hosts; of records of one image the first."""
        letterbox, texts = predictor.letterbox, predictor.class_texts(self._class_names(), self._templates)
        square = letterbox.square
        compute = predictor.compiled_detector(*self._limits)
        one_class = _objective(predictor).class_agnostic and not self._by_text
        truths: dict[int, Truth] = {}
        detections: dict[int, Detections] = {}
        batches = reading.batches(
            self._source,
            self._read,
            _Reader(predictor),
            f"{self._name}: images",
            lambda image: letterbox(image, square).example(),
        )
        first = 0
        for batch, values in batches:
            boxes = by_image(jax.tree.map(np.asarray, compute((predictor.variables, texts), batch)))
            originals = predictor.detection_split.collect(batch["originals"])
            for row, value in enumerate(values):
                if value is None:
                    continue
                image_id = first + row if value["id"] is None else value["id"]
                if image_id not in truths:
                    truths[image_id] = self._truth(value, originals[row], one_class)
                    detections[image_id] = boxes[row]
            first += len(values)
        return truths, detections

    def _read(self, record: Record) -> dict:
        """A JSON value: the annotations of a record. Raises ValueError for a class that there is not."""
        keys = self._keys
        boxes = xyxy(np.asarray(record[keys.boxes], float).reshape(-1, 4), keys.order)
        return dict(
            id=int(records.values(record, keys.image_id)[0]) if keys.image_id else None,
            boxes=boxes.tolist(),
            labels=[self._labels.number_of(label) for label in records.values(record, keys.label)],
            crowd=[bool(x) for x in records.values(record, keys.crowd)] if keys.crowd else None,
            area=[float(x) for x in records.values(record, keys.area)] if keys.area else None,
        )

    def _truth(self, value, original, one_class) -> Truth:
        height, width = original
        scale = np.array([width, height, width, height]) if self._keys.normalized else 1.0
        boxes = np.asarray(value["boxes"], float).reshape(-1, 4) * scale
        labels = [0] * len(boxes) if one_class else value["labels"]
        return Truth.of(boxes, labels, value["crowd"], value["area"])

    def _load(self, index, channels) -> tuple[np.ndarray, Truth]:
        image, value = chunks.load(self._source, self._read, np.asarray, index, channels)
        return image, self._truth(value, image.shape[:2], False)


class _Reader:
    """A predictor for reading.batches, of small batches, whose images keep their size."""

    def __init__(self, predictor):
        self.split, self.progress = predictor.detection_split, predictor.progress
        self.preprocess, self.channels = lambda images: images, predictor.channels


def _check_keys(keys, record):
    """Raises ValueError if records lack a key of Annotation."""
    for option in ("boxes", "label", "crowd", "area", "image_id"):
        key = getattr(keys, option)
        if key and key not in record:
            raise ValueError(f"detection: {option} is {key!r}; the records have {', '.join(record)}")


def _objective(predictor):
    return predictor.system.terms[predictor.system.provider("detect")].objective


def _category_ids(kind, classes):
    known = {"": range(1, classes + 1), "coco": COCO_CATEGORY_IDS}
    if kind not in known or len(known[kind]) < classes:
        raise ValueError(f"detection: category_ids is {kind!r}; use '' or, for up to 80 classes, 'coco'")
    return known[kind]


def _best(detections):
    """The detections that the report draws: at least the best one."""
    scores = detections["scores"]
    shown = np.flatnonzero((scores >= _SHOWN_SCORE) | (np.arange(len(scores)) == 0))[:_SHOWN_BOXES]
    return {key: value[shown] for key, value in detections.items()}


def _drawn(image, objects, names):
    image = bands.visible(image)
    return drawings.draw_boxes(image, objects["boxes"], objects["labels"], names, objects.get("scores"))
