"""What evaluators with equal labelled sets share, and what they don't."""

import dataclasses

import numpy as np
import pytest

from big_ssl.evals.knn import Knn
from big_ssl.evals.labelled_set import LabelledSet
from big_ssl.evals.reading import HostSplit


@pytest.fixture
def counted(embedder):
    """The made-up embedder, and how many pictures it has been shown."""
    shown = []

    def pooled(images):
        shown.append(len(images))
        return embedder.pooled(images)

    return dataclasses.replace(embedder, pooled=pooled, split=HostSplit(size=3)), shown


def test_equal_sets_are_embedded_once(counted, folder):
    """Once by a state's embedder, whatever evaluator asks; a new state's sees them again."""
    embedder, shown = counted
    train = folder({"a": ["red", "red"], "b": ["blue"]}, "train")
    tests = [folder({"a": ["red"], "b": ["blue", "grey"]}, name) for name in ("one", "two")]
    evaluators = [
        Knn(dict(kind="image_folder", path=train), dict(kind="image_folder", path=path), ks=(1,), name="x")
        for path in tests
    ]
    found = [each.metrics(embedder) for each in evaluators]
    assert shown == [3, 3, 3]
    assert found[0] == found[1] == evaluators[0].metrics(embedder)
    assert shown == [3, 3, 3]
    evaluators[0].metrics(dataclasses.replace(embedder, known={}))
    assert shown == [3, 3, 3, 3, 3]


def test_sets_that_differ_share_nothing(counted, folder):
    """Not even those of one source under other class names, or by other features."""
    embedder, _ = counted
    path = folder({"a": ["red", "blue"], "b": ["grey"]})
    plain = LabelledSet(dict(path=path, kind="image_folder"))
    turned = LabelledSet(dict(kind="image_folder", path=path), classes=["b", "a"])
    pooled, classes = plain.features(embedder, "pooled", "")
    assert plain.features(embedder, "pooled", "")[0] is pooled
    assert LabelledSet(dict(kind="image_folder", path=path)).features(embedder, "pooled", "")[0] is pooled
    assert turned.features(embedder, "pooled", "")[0] is not pooled
    assert not np.array_equal(plain.features(embedder, "images", "")[0], pooled)
    np.testing.assert_array_equal(classes, [0, 0, 1])
