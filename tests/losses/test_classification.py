"""Cross-entropies with mixed and smoothed targets against plain float64, value and gradient."""

import jax
import numpy as np
import pytest

from big_ssl.losses import classification as losses

RNG = np.random.default_rng(0)
ROWS, CLASSES = 6, 5
LOGITS = 3 * RNG.normal(size=(ROWS, CLASSES))
LABELS, PARTNERS = RNG.integers(0, CLASSES, ROWS), RNG.integers(0, CLASSES, ROWS)
MIX_RATIO = RNG.uniform(size=ROWS)


def expected_targets(smoothing, mixed):
    targets = np.full((ROWS, CLASSES), smoothing / CLASSES)
    for i in range(ROWS):
        ratio = MIX_RATIO[i] if mixed else 1.0
        targets[i, LABELS[i]] += (1 - smoothing) * ratio
        targets[i, PARTNERS[i]] += (1 - smoothing) * (1 - ratio)
    return targets


def softmax(logits, targets):
    """The mean cross-entropy and its gradient, row by row."""
    value, grad = 0.0, np.zeros_like(logits)
    for i, (row, target) in enumerate(zip(logits, targets, strict=True)):
        p = np.exp(row) / np.exp(row).sum()
        value -= (target * np.log(p)).sum() / len(logits)
        grad[i] = (p * target.sum() - target) / len(logits)
    return value, grad


def sigmoid(logits, targets):
    p = 1 / (1 + np.exp(-logits))
    value = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum() / len(logits)
    return value, (p - targets) / len(logits)


@pytest.mark.parametrize(("smoothing", "mixed"), [(0.0, False), (0.1, False), (0.1, True)])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_value_and_gradient(name, smoothing, mixed):
    mixing = (PARTNERS, MIX_RATIO.astype(np.float32)) if mixed else (None, None)
    targets = losses.targets(LABELS, CLASSES, smoothing, *mixing)
    np.testing.assert_allclose(targets, expected_targets(smoothing, mixed), atol=1e-6)
    loss = dict(softmax=losses.softmax_cross_entropy, sigmoid=losses.sigmoid_cross_entropy)[name]
    value, grad = jax.value_and_grad(loss)(LOGITS.astype(np.float32), targets)
    expected_value, expected_grad = globals()[name](LOGITS, expected_targets(smoothing, mixed))
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-7)


def test_all_crops_have_equal_weight():
    targets = expected_targets(0.1, True).astype(np.float32)
    crops = np.stack([LOGITS, 2 * LOGITS], 1).astype(np.float32)
    both = losses.softmax_cross_entropy(crops, np.stack([targets, targets], 1))
    each = [losses.softmax_cross_entropy(crops[:, i], targets) for i in range(2)]
    np.testing.assert_allclose(both, np.mean(each), rtol=1e-6)


def test_accuracy_uses_the_class_with_the_largest_target():
    targets = losses.targets(np.array([0, 0]), 3, 0.1, np.array([1, 1]), np.array([0.6, 0.4]))
    assert losses.accuracy(np.array([[3.0, 2, 1], [3, 2, 1]]), targets) == 0.5
