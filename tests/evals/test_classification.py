"""The trained classifier on labelled sets: its metrics against scikit-learn's, and what does not fit."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from big_ssl.evals.classification import Classifier

COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [120, 130, 125], [0, 0, 0], [250, 250, 250]])
CLASSES = dict(
    a=["red"] * 3, b=["green", "blue"], c=["blue"] * 4, d=["grey"], e=["red"], f=[(9, 9, 9)]
)  # fmt: skip


def logits(images):
    """float32[N, 6]: nearness of the mean colour to those of six classes."""
    mean = images.reshape(len(images), -1, 3).mean(1)
    # No two are equally near.
    return -(np.abs(mean[:, None] - COLOURS).sum(-1) + 0.1 * np.arange(6)).astype(np.float32)


def test_metrics_agree_with_scikit_learn(folder, embedder):
    data = dict(kind="image_folder", path=folder(CLASSES))
    evaluator = Classifier(data, name="x")
    assert evaluator.classes == 6
    seen = []

    def spy(images):
        seen.append(logits(images))
        return seen[-1]

    found = evaluator.metrics(dataclasses.replace(embedder, logits=spy))
    said, labels = np.concatenate(seen)[:12], np.repeat(np.arange(6), [3, 2, 4, 1, 1, 1])
    every = dict(labels=np.arange(6))
    assert found["classification/x/top1"] == pytest.approx(top_k_accuracy_score(labels, said, k=1, **every))
    assert found["classification/x/top5"] == pytest.approx(top_k_accuracy_score(labels, said, k=5, **every))
    mean = balanced_accuracy_score(labels, said.argmax(1))
    assert found["classification/x/mean_per_class"] == pytest.approx(mean)
    assert 0.5 < mean < found["classification/x/top1"] < found["classification/x/top5"] <= 1
    assert found["classification/x/chance"] == pytest.approx(1 / 6)


def test_what_does_not_fit_is_named(folder, embedder):
    evaluator = Classifier(dict(kind="image_folder", path=folder(dict(a=["red"], b=["blue"]))), name="x")
    with pytest.raises(ValueError, match=r"^classification: this model has no classifier$"):
        evaluator.metrics(embedder)
    with pytest.raises(ValueError, match=r"^classification: the data has 2 classes, the classifier 6$"):
        evaluator.metrics(dataclasses.replace(embedder, logits=logits))
