"""Composited scenes: determinism, exact annotations, and what test scenes show that training never does."""

import io

import numpy as np
import pytest
from PIL import Image

from big_ssl.data import composited_scenes, fields, pipeline, sources
from configs.emoji import TRAINING_STYLES


def _source(**options):
    return sources.build(dict(kind="composited_scenes", size=64, scenes=40) | options)


@pytest.fixture(scope="module")
def train():
    return _source(objects=(0, 5))


@pytest.fixture(scope="module")
def test():
    return _source(split="test", concepts="all")


def _pixels(record):
    return np.asarray(Image.open(io.BytesIO(record["image"])), float)


def test_a_scene_depends_on_seed_split_and_index_alone(train):
    again = _source(objects=(0, 5))
    for index in (3, 0):
        first, second = train[index], again[index]
        assert all(np.array_equal(first[key], second[key]) for key in first)
    assert train[0]["image"] != train[1]["image"]
    assert train[0]["image"] != _source(objects=(0, 5), seed=1)[0]["image"]


def test_the_number_of_objects_varies_within_its_range(train):
    counts = [len(record["objects/label"]) for record in sources.records(train)]
    assert min(counts) == 0
    assert max(counts) >= 4
    assert train[counts.index(0)]["objects/bbox"].shape == (0, 4)


def test_boxes_and_masks_are_those_of_the_visible_pixels(train):
    names = train.label_names("mask")
    for record in sources.records(train):
        mask, boxes = record["mask"], np.rint(record["objects/bbox"] * 64).astype(int)
        union = np.zeros_like(mask, bool)
        for label, (top, left, bottom, right) in zip(record["objects/label"], boxes, strict=True):
            inside = mask[top:bottom, left:right] == names.index(label)
            # The box is tight: a pixel of the class touches each of its sides.
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            union[top:bottom, left:right] = True
        assert not mask[~union].any()


def test_the_background_is_a_photograph_and_objects_are_drawn_over_it(train):
    record = next(r for r in sources.records(train) if r["objects/label"])
    record_of_none = next(r for r in sources.records(train) if not r["objects/label"])
    assert _pixels(record_of_none).std() > 10
    # What is drawn differs from its surroundings, so its outline is in the picture as well.
    pixels, mask = _pixels(record), record["mask"] > 0
    assert np.abs(pixels[mask].mean(0) - pixels[~mask].mean(0)).max() > 10


def test_depth_is_inversely_proportional_to_size_on_a_ramp():
    scenes = _source(objects=(1, 1), classes=["red apple"])  # of one shape in all styles
    for record in sources.records(scenes):
        mask, depth, (box,) = record["mask"], record["depth"], record["objects/bbox"]
        (of_object,) = np.unique(depth[mask > 0])
        side = max(box[2] - box[0], box[3] - box[1])
        assert of_object * side == pytest.approx(0.6, rel=0.2)  # sides are rounded to pixels
        assert depth[mask == 0].min() > of_object
        rows = [row[row_mask == 0][0] for row, row_mask in zip(depth, mask, strict=True)]
        assert (np.diff(rows) < 0).all()


def test_no_object_is_mostly_hidden():
    scenes = _source(objects=(6, 6), scenes=20)
    for record in sources.records(scenes):
        areas = record["objects/bbox"]
        assert len(areas) >= 1
        # The smallest side is 0.16; of which 40 % of the pixels stay visible.
        assert ((areas[:, 2] - areas[:, 0]) * (areas[:, 3] - areas[:, 1])).min() > 0.2 * 0.16**2 * 0.4


def test_training_never_shows_what_the_test_does(train, test):
    held_out = composited_scenes._held_out(test.label_names("objects/label"))
    unseen = {name for name, held in held_out.items() if held}
    assert len(unseen) == 9
    assert len(held_out) == 37
    shown = {label for record in sources.records(train) for label in record["objects/label"]}
    assert not shown & unseen
    only = _source(split="test", concepts="unseen")
    assert {label for record in sources.records(only) for label in record["objects/label"]} <= unseen
    photographs = {split: composited_scenes._photographs(split) for split in ("train", "test")}
    assert not {p.tobytes() for p in photographs["train"]} & {p.tobytes() for p in photographs["test"]}
    assert composited_scenes.STYLES["train"] == TRAINING_STYLES
    assert not set(composited_scenes.STYLES["test"]) & set(TRAINING_STYLES)


def test_a_class_has_one_number_in_all_parts(train, test):
    names = train.label_names("objects/label")
    assert test.label_names("objects/label")[: len(names)] == names
    assert _source(split="test", concepts="unseen").label_names("mask") == test.label_names("mask")
    assert test.label_names("mask") == ["background", *test.label_names("objects/label")]


def test_every_field_of_a_batch_loads(train):
    options = dict(
        image=dict(kind="image", crop=dict(kind="random_crop", resize=64, size=64), mean=(0,), std=(1,)),
        boxes=dict(kind="boxes", image="image", key="objects/bbox", class_key="objects/label", max_boxes=5),
        mask=dict(kind="mask", image="image", key="mask", num_classes=29),
        depth=dict(kind="depth", image="image", key="depth"),
    )
    load = pipeline.LoadExample(train, fields.opened(fields.build(options, 8), train, None))
    index = next(i for i in range(40) if len(train[i]["objects/label"]) == 3)
    example, record = load.random_map(index, np.random.default_rng(0)), train[index]
    assert not any(example["data_errors"].values())
    np.testing.assert_array_equal(example["mask"], record["mask"])
    np.testing.assert_array_equal(example["depth"], record["depth"])
    assert example["boxes"]["valid"].sum() == 3
    np.testing.assert_allclose(example["boxes"]["boxes"][:3], record["objects/bbox"][:, [1, 0, 3, 2]])
    names = train.label_names("objects/label")
    assert [names[i] for i in example["boxes"]["labels"][:3]] == record["objects/label"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(split="val"), "split is 'val'; use train or test"),
        (dict(concepts="some"), "no concepts 'some'; there are seen, unseen, all"),
        (dict(concepts="all"), "concepts is 'all'; training has 'seen' alone"),
        (dict(size=8), "size is 8 and scenes 40; at least 16 and 1"),
        (dict(objects=(3, 1)), "objects is (3, 1); a rising pair"),
        (dict(classes=["griffin"]), "classes has 'griffin', which is no drawing's label"),
        (dict(classes=["tiger"]), "none of the 1 classes is seen"),
    ],
)
def test_an_invalid_option_is_named(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        _source(**options)
