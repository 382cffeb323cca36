"""Predictor.detect: boxes in pixels of images of any size, by the head's classes and by text."""

import functools

import numpy as np
import pytest

from tests.evals.colour_detector import picture, predictor

detector = functools.cache(predictor)

# (height, width, boxes): as they are; twice as large; a longer side that decides; a portrait.
PICTURES = [
    (32, 48, {(16, 8, 24, 16): "red", (40, 24, 48, 32): "green"}),
    (64, 64, {(16, 32, 32, 48): "green"}),
    (16, 64, {(0, 8, 8, 16): "red"}),
    (96, 64, {(48, 64, 64, 80): "red"}),
    (32, 32, {}),
]


@pytest.mark.parametrize("devices", [1, 8])
def test_boxes_are_in_pixels_of_the_given_images(devices):
    results = detector(devices).detect([picture(*spec) for spec in PICTURES])
    for (_, _, cells), found in zip(PICTURES, results, strict=True):
        expected = sorted((*box, ("red", "green").index(colour)) for box, colour in cells.items())
        rows = np.concatenate([found["boxes"], found["labels"][:, None]], 1)
        rows = rows[np.argsort(rows[:, 0])]
        np.testing.assert_allclose(rows, np.array(expected).reshape(-1, 5), atol=1e-3)
        assert (np.diff(found["scores"]) <= 0).all()
        assert found["boxes"].dtype == found["scores"].dtype == np.float32
        assert found["labels"].dtype == np.int32


def test_many_images_of_two_sizes_keep_their_order():
    cells = [(8 * (i % 4), 8, 8 * (i % 4) + 8, 16) for i in range(11)]
    pictures = [picture(32, 32 + 16 * (i % 2), {cell: "red"}) for i, cell in enumerate(cells)]
    results = detector().detect(pictures)
    np.testing.assert_allclose([found["boxes"][0] for found in results], cells, atol=1e-3)


def test_thresholds_and_limits():
    """A cell that is half red has a logit of -2, a probability of 0.12."""
    half = picture(32, 32, {(8, 8, 12, 16): "red", (16, 16, 24, 24): "red"})
    assert len(detector().detect(half)[0]["scores"]) == 2
    assert len(detector().detect(half, score_threshold=0.2)[0]["scores"]) == 1
    (best,) = detector().detect(half, max_detections=1)
    np.testing.assert_allclose(best["boxes"], [[16, 16, 24, 24]], atol=1e-3)


@pytest.mark.parametrize("devices", [1, 8])
def test_names_classify_proposals_by_text(devices):
    """Whatever the head's class, what is inside a box is nearest to its colour's name."""
    image = picture(32, 48, {(16, 8, 24, 16): "green", (40, 24, 48, 32): "red"})
    (found,) = detector(devices).detect(image, ["a blue thing", "a red thing", "a green thing"])
    by_left = np.argsort(found["boxes"][:, 0])
    np.testing.assert_array_equal(found["labels"][by_left], [2, 1])
    (plain,) = detector(devices).detect(image)
    assert (found["scores"] < plain["scores"]).all()
    # The probability is that of zero_shot of the cut-out.
    crop = picture(8, 8, {(0, 0, 8, 8): "green"})
    names = ["a blue thing", "a red thing", "a green thing"]
    probability = detector(devices).zero_shot(crop, names)[0, 2]
    ratio = found["scores"][by_left[0]] / plain["scores"].max()
    np.testing.assert_allclose(ratio, probability, rtol=1e-2)


def test_all_evaluations_of_a_run_share_what_is_compiled():
    first, second = (detector().for_evaluation().compiled_detector(0.5, 7) for _ in range(2))
    assert first is second


def test_errors_name_what_is_missing():
    with pytest.raises(ValueError, match=r"^class_names must be a list of str, at least one$"):
        detector().detect(picture(8, 8, {}), [])
    with pytest.raises(ValueError, match=r"^images are float64\[1, 8, 8, 3\]; they must be uint8"):
        detector().detect(np.zeros((8, 8, 3)))


def test_a_model_without_a_detection_head_says_so(predictor):
    with pytest.raises(ValueError, match=r"^this model has no detection head: none was trained; it has "):
        predictor.detect(picture(8, 8, {}))
