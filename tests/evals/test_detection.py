"""The evaluator of detection: perfect and imperfect detectors, crowds, several records of one image."""

import json

import numpy as np
import pytest

from big_ssl import config
from big_ssl.data import sources
from big_ssl.evals import suite
from big_ssl.evals.detection import Detection
from tests.evals.colour_detector import NAMES, Pictures, predictor

pytest.importorskip("faster_coco_eval", reason="the extra eval installs faster-coco-eval")

RED, GREEN = (16, 8, 24, 16), (40, 24, 48, 32)
SETS = {
    # Portraits, larger images, and one without boxes.
    "right": [
        (32, 48, {RED: "red", GREEN: "green"}, 7),
        (96, 64, {(48, 64, 64, 80): "red"}, 3),
        (40, 40, {}, 5),
    ],
    # The second record of an image does not count; nor does the colour that nobody finds count as found.
    "twice": [
        (32, 48, {RED: "red"}, 1),
        (32, 48, {}, 1),
        (32, 48, {GREEN: "green", RED: "red"}, 2),
    ],
}


@pytest.fixture(autouse=True)
def _register(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "pictures", lambda pictures: Pictures(SETS[pictures]))


@pytest.fixture(scope="module")
def detectors():
    return {n: predictor(devices=n).for_evaluation() for n in (1, 8)}


def evaluator(pictures="right", **options):
    return Detection(dict(kind="pictures", pictures=pictures), name="cells", **options)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_perfect_detector_has_a_precision_of_one(devices, detectors):
    made = evaluator()
    suite.check("evals.cells", made, detectors[devices])
    metrics = made.metrics(detectors[devices])
    assert metrics == {f"detection/cells/{name}": 1.0 for name in ("AP", "AP50", "AP75", "AP_small")}


def test_of_an_image_with_two_records_the_first_counts(detectors):
    """Without image numbers, the second record, an image like the first without a box, has no detection."""
    metrics = evaluator("twice", image_id="number").metrics(detectors[1])
    assert metrics["detection/cells/AP50"] == 1.0


def test_text_classifies_with_seen_and_unseen_classes(detectors):
    made = evaluator(by_text=True, seen=("red",))
    metrics = made.metrics(detectors[1])
    assert metrics["detection/cells/AP50_seen"] == metrics["detection/cells/AP50_unseen"] == 1.0
    assert made.requires == ("detect", "encode_image", "encode_text", "zero_shot")


def test_a_class_agnostic_head_is_measured_with_one_class():
    made = evaluator()
    agnostic = predictor(class_agnostic=True).for_evaluation()
    made.check(agnostic)
    truths, _ = made._compared(agnostic)
    assert {label for truth in truths.values() for label in truth.labels} == {0}


def test_crowds_and_results(detectors, tmp_path):
    """A crowd is green, so no green box counts; the file has all detections, with their images' numbers."""
    file = tmp_path / "results.json"
    made = evaluator(crowd="objects/crowd", image_id="number", results=str(file), category_ids="coco")
    truths, _ = made._compared(detectors[1])
    assert truths[7].crowd.tolist() == [False, True]
    assert made.metrics(detectors[1])["detection/cells/AP50"] == 1.0
    rows = json.loads(file.read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(7, 1), (7, 2), (3, 1)]
    np.testing.assert_allclose(rows[2]["bbox"], [48, 64, 16, 16], atol=1e-2)


def test_the_section_shows_images_with_their_boxes(detectors):
    (section,) = evaluator().sections(detectors[1])
    assert section.name == "detection_cells"
    axes = section.figure.axes
    assert len(axes) == 6
    annotated, detected = (np.asarray(axes[i].images[0].get_array()) for i in (0, 3))
    assert annotated.shape == detected.shape == (32, 48, 3)
    assert (annotated != detected).any()  # a score beside the name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(area="areas"), r"^detection: area is 'areas'; the records have image, number, objects/bbox, "),
        (dict(order="xyhw"), r"^detection: order is 'xyhw'; use xyxy, yxyx, xywh$"),
        (dict(seen=("blue",)), r"^detection: seen has 'blue', which is none of red, green$"),
        (
            dict(category_ids="voc"),
            r"^detection: category_ids is 'voc'; use '' or, for up",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        evaluator(**options)


def test_another_number_of_classes_is_named(detectors, monkeypatch):
    monkeypatch.setattr(Pictures, "label_names", lambda self, key: [*NAMES, "blue"])
    with pytest.raises(ValueError, match=r"^evals.cells: detection: the data has 3 classes, the head 2$"):
        suite.check("evals.cells", evaluator(), detectors[1])


def test_the_config_checks_its_options():
    options = dict(kind="detection", data=dict(kind="emoji"), labels="x")
    with pytest.raises(config.ConfigError, match=r"^evals.coco.labels is no known key; .*label"):
        config.validate_evaluator(options, "evals.coco")
