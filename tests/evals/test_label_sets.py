"""The classes of ImageNet and its test sets, each by its own rule."""

import numpy as np
import pytest

from big_ssl.data import label_sets
from big_ssl.evals.labelled_set import LabelledSet
from big_ssl.evals.zero_shot import ZeroShot

WNIDS = [line.split("\t")[0] for line in label_sets.labels_file("imagenet.tsv").read_text().splitlines()]


def test_imagenet_is_what_openai_named():
    found = label_sets.build("imagenet", WNIDS)
    assert (len(found.names), len(set(found.names))) == (1000, 998)
    np.testing.assert_array_equal(found.classes, np.arange(1000))
    expected = {0: "tench", 134: "crane bird", 517: "construction crane", 657: "missile", 744: "missile"}
    assert {i: found.names[i] for i in expected} == expected


def test_unicl_names_two_of_imagenets_classes_otherwise():
    found, openai = (label_sets.build(name, WNIDS) for name in ("imagenet_unicl", "imagenet"))
    assert len(set(found.names)) == 1000
    pairs = zip(openai.names, found.names, strict=True)
    assert {a: b for a, b in pairs if a != b} == dict(missile="projectile", sunglasses="dark glasses")
    np.testing.assert_array_equal(found.classes, openai.classes)
    assert (found.names[657], found.names[836]) == ("missile", "sunglasses")


@pytest.mark.parametrize(
    ("name", "first", "last", "names"),
    [
        ("imagenet_a", "n01498041", "n12267677", {"stingray", "acorn", "grand piano"}),
        ("imagenet_r", "n01443537", "n12267677", {"goldfish", "acorn", "grand piano"}),
    ],
)
def test_parts_of_imagenet(name, first, last, names):
    found = label_sets.build(name, WNIDS)  # TFDS has all 1000 labels for them
    kept = [wnid for wnid, place in zip(WNIDS, found.classes, strict=True) if place >= 0]
    assert (len(kept), kept[0], kept[-1], len(found.names)) == (200, first, last, 200)
    np.testing.assert_array_equal(found.classes[found.classes >= 0], np.arange(200))
    assert names < set(found.names)
    # A folder has only its own.
    np.testing.assert_array_equal(label_sets.build(name, kept).classes, np.arange(200))


def test_imagenet_v2_has_integers_for_names(folder, predictor):
    path = folder({str(i): [(i, 0, 0)] for i in (0, 1, 2, 10, 11, 100)})
    data = LabelledSet(dict(kind="image_folder", path=path), classes="imagenet")
    ((images, labels),) = data.batches(np.array, predictor, "x")
    # The red of each picture is its number: 10 comes after 2, and is class 10.
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 2, 10, 11, 100])
    np.testing.assert_array_equal(labels, [0, 1, 2, 10, 11, 100])


def test_integers_without_a_label_set_are_in_their_order_too(folder, predictor):
    path = folder({str(i): [(i, 0, 0)] for i in (1, 2, 10)})
    data = LabelledSet(dict(kind="image_folder", path=path), classes=["one", "two", "ten"])
    ((_, labels),) = data.batches(np.array, predictor, "x")
    np.testing.assert_array_equal(labels, [0, 1, 2])


def test_imagenet_a_is_classified_into_200(folder, predictor, monkeypatch):
    """A red stingray, say, is nearest to the name of a class that is not among them."""
    assert 0 not in label_sets.build("imagenet_a", WNIDS).classes[:1]  # the tench, ImageNet's first
    red, green = predictor.encode_text(["red", "green"])
    table = {"tench": red, "stingray": (red + green) / 2}  # all others are far away
    embed = lambda prompts: np.array([table.get(prompt, -red) for prompt in prompts])  # noqa: E731
    monkeypatch.setattr(predictor, "encode_text", embed)
    data = dict(kind="image_folder", path=folder({"n01498041": ["red"]}))
    for classes, right in (("imagenet", 0), ("imagenet_a", 1)):
        found = ZeroShot(data, classes=classes, templates="{}", name="x").metrics(predictor)
        assert found["zero_shot/x/top1"] == right


def test_an_image_of_another_class_is_an_error(folder, predictor):
    path = folder({"n01498041": ["red"], "n01440764": ["red"]})
    data = LabelledSet(dict(kind="image_folder", path=path), classes="imagenet_a")
    with pytest.raises(ValueError, match="labelled 'n01440764', which is none of the classes"):
        list(data.batches(np.array, predictor, "x"))


def test_objectnets_113_under_its_own_names(folder, predictor):
    path = folder({"alarm_clock": ["red"], "wheel": ["green"], "air_freshener": ["blue"], "wok": ["grey"]})
    data = LabelledSet(dict(kind="image_folder", path=path), classes="objectnet")
    assert len(data.names) == len(set(data.names)) == 113
    assert {"alarm clock", "still camera", "binder (closed)"} < set(data.names)
    ((images, labels),) = data.batches(np.array, predictor, "x")
    # ImageNet has no air freshener: its pictures are left out.
    assert [data.names[label] for label in labels] == ["alarm clock", "wheel", "wok"]
    assert images[:, 0, 0].argmax(1).tolist()[:2] == [0, 1]
