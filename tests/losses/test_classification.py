"""Cross-entropies of shared and smoothed targets against plain float64, value and gradient."""

import jax
import numpy as np
import pytest

from big_ssl.losses import classification as losses

RNG = np.random.default_rng(0)
ROWS, CLASSES = 6, 5
LOGITS = 3 * RNG.normal(size=(ROWS, CLASSES))
LABELS, PARTNERS = RNG.integers(0, CLASSES, ROWS), RNG.integers(0, CLASSES, ROWS)
SHARE = RNG.uniform(size=ROWS)


def wanted_targets(smoothing, mixed):
    found = np.full((ROWS, CLASSES), smoothing / CLASSES)
    for i in range(ROWS):
        share = SHARE[i] if mixed else 1.0
        found[i, LABELS[i]] += (1 - smoothing) * share
        found[i, PARTNERS[i]] += (1 - smoothing) * (1 - share)
    return found


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
    given = (PARTNERS, SHARE.astype(np.float32)) if mixed else (None, None)
    targets = losses.targets(LABELS, CLASSES, smoothing, *given)
    np.testing.assert_allclose(targets, wanted_targets(smoothing, mixed), atol=1e-6)
    loss = dict(softmax=losses.softmax_cross_entropy, sigmoid=losses.sigmoid_cross_entropy)[name]
    value, grad = jax.value_and_grad(loss)(LOGITS.astype(np.float32), targets)
    wanted_value, wanted_grad = globals()[name](LOGITS, wanted_targets(smoothing, mixed))
    np.testing.assert_allclose(value, wanted_value, rtol=1e-6)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-5, atol=1e-7)


def test_all_crops_count_alike():
    targets = wanted_targets(0.1, True).astype(np.float32)
    crops = np.stack([LOGITS, 2 * LOGITS], 1).astype(np.float32)
    both = losses.softmax_cross_entropy(crops, np.stack([targets, targets], 1))
    apart = [losses.softmax_cross_entropy(crops[:, i], targets) for i in range(2)]
    np.testing.assert_allclose(both, np.mean(apart), rtol=1e-6)


def test_accuracy_is_of_the_larger_share():
    targets = losses.targets(np.array([0, 0]), 3, 0.1, np.array([1, 1]), np.array([0.6, 0.4]))
    assert losses.accuracy(np.array([[3.0, 2, 1], [3, 2, 1]]), targets) == 0.5
