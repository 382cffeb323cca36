"""Writes tests/data/golden_coco_metrics.npz: random boxes and detections, and pycocotools' numbers for them.

    python -m tests.parity.make_coco_metrics_goldens [FOLDER]

needs pycocotools; it is run from the repository's root.
"""

import contextlib
import io
import pathlib
import sys
from importlib.metadata import version

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CLASSES, IMAGES = 4, 14
# The ids of these classes in the files: as in COCO's, with gaps.
CATEGORY_IDS = (1, 13, 27, 90)


def random_sets(seed):
    """(boxes, detections): rows of (image, class, left, top, right, bottom, crowd, area) and of (image,
    class, left, top, right, bottom, score).

    Crowds; images without boxes, without detections and without either; scores that tie; areas that are not
    the boxes'; a class without boxes; more than 100 detections in an image.
    """
    rng = np.random.default_rng(seed)
    boxes, detections = [], []
    for image in range(IMAGES):
        count = 0 if image % 7 == 3 else rng.integers(1, 9)
        corners = rng.uniform(0, 200, (count, 2))
        sides = np.exp(rng.uniform(np.log(6), np.log(300), (count, 2)))
        labels = rng.integers(0, CLASSES - 1, count)
        crowd = rng.random(count) < 0.2
        area = sides.prod(1) * rng.uniform(0.4, 1, count)
        own = np.concatenate([corners, corners + sides], 1)
        boxes += [
            (image, label, *box, c, a) for label, box, c, a in zip(labels, own, crowd, area, strict=True)
        ]
        if image % 7 == 5 or image == 3:
            continue
        for _ in range(130 if image == 0 else 12):
            if count and rng.random() < 0.7:
                i = rng.integers(count)
                box = own[i] + rng.normal(0, 0.08, 4) * np.tile(sides[i], 2)
                label = labels[i] if rng.random() < 0.8 else rng.integers(CLASSES)
            else:
                corner, label = rng.uniform(0, 200, 2), rng.integers(CLASSES)
                box = np.concatenate([corner, corner + rng.uniform(5, 120, 2)])
            detections.append((image, label, *box, rng.integers(0, 12) / 12))
    return np.array(boxes), np.array(detections)


def pycocotools_numbers(boxes, detections):
    """float64[6]: AP, AP50, AP75 and AP of small, medium and large ones, by the reference."""
    xywh = lambda row: [row[2], row[3], row[4] - row[2], row[5] - row[3]]  # noqa: E731
    common = lambda row: dict(  # noqa: E731
        image_id=int(row[0]), category_id=CATEGORY_IDS[int(row[1])], bbox=xywh(row)
    )
    dataset = dict(
        images=[dict(id=i) for i in range(IMAGES)],
        categories=[dict(id=i) for i in CATEGORY_IDS],
        annotations=[
            dict(common(row), id=i + 1, iscrowd=int(row[6]), area=row[7]) for i, row in enumerate(boxes)
        ],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        found = truth.loadRes([dict(common(row), score=row[6]) for row in detections])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


def main(folder):
    """Writes the file into folder."""
    arrays = {}
    for seed in range(3):
        boxes, detections = random_sets(seed)
        numbers = pycocotools_numbers(boxes, detections)
        arrays |= {f"boxes{seed}": boxes, f"detections{seed}": detections, f"numbers{seed}": numbers}
    path = folder / "golden_coco_metrics.npz"
    np.savez_compressed(path, made_by=f"pycocotools {version('pycocotools')}", **arrays)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data"))
