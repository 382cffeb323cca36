"""The trained classifier on labelled sets: its metrics against scikit-learn's, and what does not fit."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from big_ssl.evals.classification import Classifier

CLASSES = dict(
    a=["red"] * 3, b=["green", (20, 70, 240)], c=["blue"] * 4, d=["grey"], e=[(240, 20, 30)], f=[(9, 9, 9)]
)  # fmt: skip


def test_metrics_agree_with_scikit_learn(folder, predictor, monkeypatch):
    evaluator = Classifier(dict(kind="image_folder", path=folder(CLASSES)), name="x")
    evaluator.check(predictor)
    batches, classify = [], predictor.classify
    monkeypatch.setattr(predictor, "classify", lambda images: batches.append(classify(images)) or batches[-1])
    found = evaluator.metrics(predictor)
    logits, labels = np.concatenate(batches)[:12], np.repeat(np.arange(6), [3, 2, 4, 1, 1, 1])
    every = dict(labels=np.arange(6))
    assert found["classification/x/top1"] == pytest.approx(top_k_accuracy_score(labels, logits, k=1, **every))
    assert found["classification/x/top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, **every))
    mean = balanced_accuracy_score(labels, logits.argmax(1))
    assert found["classification/x/mean_per_class"] == pytest.approx(mean)
    assert 0.5 < mean < found["classification/x/top1"] < found["classification/x/top5"] <= 1
    assert found["classification/x/chance"] == pytest.approx(1 / 6)


def test_another_number_of_classes_is_an_error(folder, predictor):
    evaluator = Classifier(dict(kind="image_folder", path=folder(dict(a=["red"], b=["blue"]))), name="x")
    with pytest.raises(ValueError, match=r"^classification: the data has 2 classes, the classifier 6$"):
        evaluator.check(predictor)
