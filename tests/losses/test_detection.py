"""The losses of a detector against plain float64: values, gradients, and rows that must not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.losses import boxes as box_lib
from big_ssl.losses import detection as losses

RNG = np.random.default_rng(0)


def random_boxes(rng, count, size=100):
    corners = rng.uniform(0, size, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], -1)


def overlaps(a, b):
    """(intersection, union, the area of the enclosing box) of two boxes."""
    area = (a[2] - a[0]) * (a[3] - a[1])
    other = (b[2] - b[0]) * (b[3] - b[1])
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = width * height if width > 0 and height > 0 else 0.0
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both, area + other - both, around


def giou(a, b):
    both, union, around = overlaps(a, b)
    return both / union - (around - union) / around


def numeric_gradient(function, x, step=1e-6):
    """Of a float64 function, by central differences."""
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        delta = np.zeros_like(x)
        delta[i] = step
        grad[i] = (function(x + delta) - function(x - delta)) / (2 * step)
    return grad


def focal(logits, positive, alpha, gamma):
    p = 1 / (1 + np.exp(-logits))
    target = np.where(positive, p, 1 - p)
    return (-np.where(positive, alpha, 1 - alpha) * (1 - target) ** gamma * np.log(target)).sum()


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.5)])
def test_focal_loss_and_gradient(alpha, gamma):
    logits, labels = 3 * RNG.normal(size=(2, 7, 4)), RNG.integers(-1, 4, (2, 7))
    positive = labels[..., None] == np.arange(4)
    loss = lambda x: losses.class_loss(x, labels, alpha, gamma)  # noqa: E731
    (value, count), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits.astype(np.float32))
    assert count == (labels >= 0).sum()
    np.testing.assert_allclose(value, focal(logits, positive, alpha, gamma), rtol=1e-6)
    expected = numeric_gradient(lambda x: focal(x, positive, alpha, gamma), logits)
    np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_focal_loss_is_finite_for_extreme_logits():
    logits = jnp.array([-200.0, 200.0, -200.0, 200.0])

    def loss(x):
        values = losses.sigmoid_focal_loss(x, np.array([1, 1, 0, 0]) > 0, gamma=0.5)
        return values.sum(), values

    grads, values = jax.jit(jax.grad(loss, has_aux=True))(logits)
    np.testing.assert_allclose(values, [50, 0, 0, 150], atol=1e-6)
    np.testing.assert_allclose(grads, [-0.25, 0, 0, 0.75], atol=1e-6)


def test_iou_of_all_pairs():
    a, b = random_boxes(RNG, 6), random_boxes(RNG, 5)
    a[1] = b[2]
    expected = np.array([[overlaps(x, y)[0] / overlaps(x, y)[1] for y in b] for x in a])
    found = jax.jit(box_lib.box_iou)(a[:, None], b)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (expected == 0).any()
    assert found[1, 2] == 1


def test_box_loss_and_gradient():
    """Overlapping, disjoint and equal boxes."""
    predicted, targets = random_boxes(RNG, 20), random_boxes(RNG, 20)
    predicted[3] = targets[3] + 1e-3 * RNG.normal(size=4)
    weights = RNG.uniform(0.1, 1, 20)

    def expected(boxes):
        return sum(w * (1 - giou(a, b)) for w, a, b in zip(weights, boxes, targets, strict=True))

    loss = lambda x: losses.box_loss(x, targets, weights)  # noqa: E731
    (value, count), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(predicted.astype(np.float32))
    np.testing.assert_allclose(count, weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(value, expected(predicted), rtol=1e-5)
    np.testing.assert_allclose(grad, numeric_gradient(expected, predicted), atol=1e-5)
    assert min(overlaps(*pair)[0] for pair in zip(predicted, targets, strict=True)) == 0


def test_weights_of_boxes_have_no_gradient():
    predicted, targets = random_boxes(RNG, 3), random_boxes(RNG, 3)
    grad = jax.jit(jax.grad(lambda w: losses.box_loss(predicted, targets, w)[0]))
    assert not grad(jnp.ones(3)).any()


def test_centerness():
    boxes = random_boxes(RNG, 30)
    points = RNG.uniform(0, 100, (30, 2))
    points[:10] = (boxes[:10, :2] + boxes[:10, 2:]) / 2 + RNG.normal(size=(10, 2))
    centerness = jax.jit(losses.centerness)
    found = np.asarray(centerness(points, boxes))
    for (x, y), (left, top, right, bottom), value in zip(points, boxes, found, strict=True):
        across, down = sorted((x - left, right - x)), sorted((y - top, bottom - y))
        expected = np.sqrt(across[0] / across[1] * down[0] / down[1]) if min(across[0], down[0]) > 0 else 0
        np.testing.assert_allclose(value, expected, atol=1e-5)
    assert 10 <= (found > 0).sum() < 30
    box = np.tile([0.0, 0, 8, 12], (30, 1))
    np.testing.assert_allclose(centerness(np.tile([4.0, 6], (30, 1)), box), 1)


def test_centerness_loss_and_gradient():
    logits, targets = 3 * RNG.normal(size=12), RNG.uniform(size=12)
    positive = RNG.uniform(size=12) < 0.5

    def expected(x):
        p = 1 / (1 + np.exp(-x))
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))[positive].sum()

    loss = lambda x: losses.centerness_loss(x, targets, positive)  # noqa: E731
    (value, count), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits.astype(np.float32))
    assert count == positive.sum()
    np.testing.assert_allclose(value, expected(logits), rtol=1e-5)
    np.testing.assert_allclose(grad, numeric_gradient(expected, logits), atol=1e-6)


def test_rows_without_a_box_add_nothing_and_have_finite_gradients():
    """Padding and background hold zeros; a prediction may be empty or far away."""
    predicted = np.array([[0.0, 0, 0, 0], [5, 5, 5, 5], [1e4, 1e4, 1e4, 1e4]], np.float32)
    targets, points = np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32)

    def loss(predicted, targets, points):
        values = losses.centerness(points, targets)
        box, count = losses.box_loss(predicted, targets, values)
        center, _ = losses.centerness_loss(points[:, 0], values, np.zeros(3, bool))
        return box + center + count

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(predicted, targets, points)
    assert value == 0
    assert not any(np.asarray(grad).any() for grad in grads)
    iou = jax.jit(jax.grad(lambda x: box_lib.generalized_iou(x, targets).sum()))(predicted)
    assert np.isfinite(iou).all()


def test_sums_of_parts_add_up():
    logits, labels = RNG.normal(size=(4, 6, 3)), RNG.integers(-1, 3, (4, 6))
    class_loss = jax.jit(losses.class_loss)
    whole = class_loss(logits, labels)
    parts = [class_loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    for i in range(2):
        np.testing.assert_allclose(sum(part[i] for part in parts), whole[i], rtol=1e-6)
