"""COCO's average precision: pycocotools' numbers, subsets of classes, and results in COCO's form."""

import pathlib
import sys

import numpy as np
import pytest

from big_ssl.evals import coco_metrics
from big_ssl.evals.coco_metrics import COCO_CATEGORY_IDS, Precisions, Truth, results

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden_coco_metrics.npz"
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
CLASSES, IMAGES = 4, 14

pytest.importorskip("faster_coco_eval", reason="the extra eval installs faster-coco-eval")


def golden(seed):
    """(truths, detections, pycocotools' numbers)."""
    arrays = np.load(GOLDEN)
    boxes, detections = arrays[f"boxes{seed}"], arrays[f"detections{seed}"]
    truths = {
        i: Truth.of(rows[:, 2:6], rows[:, 1], rows[:, 6], rows[:, 7])
        for i in range(IMAGES)
        for rows in [boxes[boxes[:, 0] == i]]
    }
    found = {
        i: dict(boxes=rows[:, 2:6], labels=rows[:, 1], scores=rows[:, 6])
        for i in range(IMAGES)
        for rows in [detections[detections[:, 0] == i]]
    }
    return truths, found, arrays[f"numbers{seed}"]


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_numbers(seed):
    truths, detections, numbers = golden(seed)
    assert not all(len(truth.boxes) for truth in truths.values())
    assert any(truth.crowd.any() for truth in truths.values())
    metrics = Precisions(truths, detections, CLASSES).metrics()
    np.testing.assert_allclose([metrics[name] for name in NAMES], numbers, rtol=1e-12)
    assert 0.1 < metrics["AP50"] < 0.9


def test_the_mean_over_classes_is_that_of_subsets():
    """The last class has no boxes, and counts in no mean."""
    truths, detections, _ = golden(0)
    precisions = Precisions(truths, detections, CLASSES)
    single = [precisions.metrics([label])["AP50"] for label in range(CLASSES - 1)]
    assert precisions.metrics()["AP50"] == pytest.approx(np.mean(single))
    assert precisions.metrics([0, 1])["AP50"] == pytest.approx(np.mean(single[:2]))
    assert precisions.metrics([CLASSES - 1]) == {}


def test_no_detections_score_zero_and_perfect_ones_score_one():
    truths = {7: Truth.of([[0, 0, 50, 40], [20, 30, 90, 95]], [1, 0]), 9: Truth.of([], [])}
    empty = dict(boxes=np.zeros((0, 4)), scores=[], labels=[])
    assert Precisions(truths, {7: empty, 9: empty}, 2).metrics()["AP"] == 0
    right = dict(boxes=truths[7].boxes, scores=[0.5, 0.5], labels=[1, 0])
    assert Precisions(truths, {7: right, 9: empty}, 2).metrics() == pytest.approx(
        dict(AP=1.0, AP50=1.0, AP75=1.0, AP_medium=1.0)
    )


def test_an_image_without_boxes_counts_its_false_detections():
    truths = {0: Truth.of([[0, 0, 10, 10]], [0]), 1: Truth.of([], [])}
    right = dict(boxes=[[0, 0, 10, 10]], scores=[0.5], labels=[0])
    wrong = dict(boxes=[[0, 0, 10, 10]], scores=[0.9], labels=[0])
    assert Precisions(truths, {0: right, 1: wrong}, 1).metrics()["AP50"] == pytest.approx(0.5)


def test_results_have_cocos_ids_and_boxes():
    assert len(COCO_CATEGORY_IDS) == 80
    assert (COCO_CATEGORY_IDS[0], COCO_CATEGORY_IDS[11], COCO_CATEGORY_IDS[79]) == (1, 13, 90)
    found = {5: dict(boxes=np.float32([[1, 2, 4, 8]]), scores=np.float32([0.5]), labels=np.int32([11]))}
    assert results(found, COCO_CATEGORY_IDS) == [
        dict(image_id=5, category_id=13, bbox=[1.0, 2.0, 3.0, 6.0], score=0.5)
    ]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(
        ValueError, match=r"^detection needs faster-coco-eval: pip install 'big-ssl\[eval\]'$"
    ):
        coco_metrics.package.__wrapped__()
