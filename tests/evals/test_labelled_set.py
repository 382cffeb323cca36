"""What evaluators with equal labelled sets share, and what they don't."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from big_ssl.evals import reading
from big_ssl.evals.knn import Knn
from big_ssl.evals.labelled_set import LabelledSet


@pytest.fixture
def counted(predictor, monkeypatch):
    """The predictor in batches of 3, and the sizes of the batches that it is called with."""
    sizes, pooled_features = [], predictor.pooled_features

    def spy(images):
        sizes.append(len(images))
        return pooled_features(images)

    monkeypatch.setattr(predictor, "pooled_features", spy)
    predictor.split = reading.over_mesh(predictor._mesh, 3)
    return predictor, sizes


def test_equal_sets_are_embedded_once(counted, folder):
    """Once for all evaluators of a state; a new state has a new cache."""
    predictor, sizes = counted
    train = folder({"a": ["red", "red"], "b": ["blue"]}, "train")
    tests = [folder({"a": ["red"], "b": ["blue", "grey"]}, name) for name in ("one", "two")]
    evaluators = [
        Knn(dict(kind="image_folder", path=train), dict(kind="image_folder", path=path), ks=(1,), name="x")
        for path in tests
    ]
    found = [each.metrics(predictor) for each in evaluators]
    assert sizes == [3, 3, 3]
    assert found[0] == found[1] == evaluators[0].metrics(predictor)
    assert sizes == [3, 3, 3]
    predictor.cache = {}
    evaluators[0].metrics(predictor)
    assert sizes == [3, 3, 3, 3, 3]


def test_sets_that_differ_share_nothing(counted, folder):
    """Not even those of one source under other class names, or by other features."""
    predictor, _ = counted
    path = folder({"a": ["red", "blue"], "b": ["grey"]})
    plain = LabelledSet(dict(path=path, kind="image_folder"))
    turned = LabelledSet(dict(kind="image_folder", path=path), classes=["b", "a"])
    pooled, classes = plain.features(predictor, "pooled", "")
    assert plain.features(predictor, "pooled", "")[0] is pooled
    assert LabelledSet(dict(kind="image_folder", path=path)).features(predictor, "pooled", "")[0] is pooled
    assert turned.features(predictor, "pooled", "")[0] is not pooled
    assert not np.array_equal(plain.features(predictor, "images", "")[0], pooled)
    np.testing.assert_array_equal(classes, [0, 0, 1])


def test_a_part_names_and_reads_images_as_the_whole_set(folder):
    path = folder({"a": ["red"] * 10, "b": ["blue"] * 10})
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in sorted(pathlib.Path(path).rglob("*.png")):
        Image.new("RGB", (6, 5)).save(file, exif=exif)
    whole = LabelledSet(dict(kind="image_folder", path=path, orientation="exif"))
    broken = sorted(pathlib.Path(path).rglob("*.png"))[-1]
    broken.write_bytes(b"no image")
    parts = sorted(whole.split(0.5), key=lambda part: part._source._indices[-1])
    for part in parts:
        assert part.image(0, lambda image: image.size)[0] == (5, 6)
    with pytest.raises(ValueError, match=f"^data: the image of {broken} can't be decoded"):
        parts[1].image(len(parts[1]) - 1, np.asarray)
