"""DINO's and iBOT's cross-entropies against float64 sums written from the papers' equations."""

import jax
import numpy as np
import pytest

from big_ssl.losses.self_distillation import centred_softmax, cross_view, masked_patches, moved_centre

RNG = np.random.default_rng(0)
EXAMPLES, GLOBAL, CROPS, K = 3, 2, 5, 7
TEMPERATURE, TEACHERS = 0.1, 0.04


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def targets(*shape):
    logits, centre = 0.1 * RNG.normal(size=(*shape, K)), 0.1 * RNG.normal(size=K)
    return logits, centre, softmax((logits - centre) / TEACHERS)


def test_targets_are_centred_and_sharpened():
    logits, centre, expected = targets(EXAMPLES, GLOBAL)
    np.testing.assert_allclose(centred_softmax(logits, centre, TEACHERS), expected, rtol=1e-5)


def test_the_centre_follows_its_recurrence():
    np.testing.assert_allclose(moved_centre(np.array([1.0, 2.0]), np.array([3.0, 0.0]), 0.9), [1.2, 1.8])


def test_cross_view_is_the_mean_over_pairs_of_different_crops():
    """arXiv 2104.14294, equation 3, pair by pair: 2 + 3 crops, 8 pairs and not 10."""
    _, _, taught = targets(EXAMPLES, GLOBAL)
    student = RNG.normal(size=(EXAMPLES, CROPS, K))
    terms = [
        -(taught[b, t] * np.log(softmax(student[b, s] / TEMPERATURE))).sum()
        for b in range(EXAMPLES)
        for t in range(GLOBAL)
        for s in range(CROPS)
        if s != t
    ]
    assert len(terms) == EXAMPLES * 8
    loss, metrics = cross_view(student, taught, TEMPERATURE)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    entropy = -(taught * np.log(taught)).sum(-1).mean()
    np.testing.assert_allclose(metrics["teacher_entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["target_kl"], np.mean(terms) - entropy, rtol=1e-4)


def test_the_gradient_of_cross_view():
    """By hand: the sum over its pairs of (softmax - target) / temperature, over the number of pairs."""
    _, _, taught = targets(EXAMPLES, GLOBAL)
    student = 0.1 * RNG.normal(size=(EXAMPLES, CROPS, K))
    expected = np.zeros_like(student)
    for s in range(CROPS):
        others = [t for t in range(GLOBAL) if t != s]
        probabilities = softmax(student[:, s] / TEMPERATURE)
        expected[:, s] = sum(probabilities - taught[:, t] for t in others) / TEMPERATURE / (8 * EXAMPLES)
    found = jax.grad(lambda x: cross_view(x, taught, TEMPERATURE)[0])(student.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_the_same_view_teaches_nothing():
    """What a global crop says of itself is in no pair: changing it changes no other crop's gradient by it."""
    student, taught = RNG.normal(size=(1, 2, K)), np.zeros((1, 2, K))
    taught[0, 0] = softmax(RNG.normal(size=K))  # only the first target speaks
    grad = jax.grad(lambda x: cross_view(x, taught, TEMPERATURE)[0])(student.astype(np.float32))
    assert np.abs(grad[0, 0]).max() == 0
    assert np.abs(grad[0, 1]).max() > 0


def test_masked_patches_average_in_a_crop_and_then_over_all_crops():
    """arXiv 2111.07832, equation 2; a crop without a mask counts with 0, as in the published code."""
    counts, total = [3, 1], 4  # two masked crops of four
    _, _, taught = targets(sum(counts))
    student = RNG.normal(size=(sum(counts), K))
    each = -(taught * np.log(softmax(student / TEMPERATURE))).sum(-1)
    expected = (each[:3].mean() + each[3:].mean()) / total
    weights = np.repeat([1 / 3, 1.0], counts).astype(np.float32)
    shaped = [x.reshape(2, 2, *x.shape[1:]) for x in (student, taught, weights)]  # in two groups
    loss, metrics = masked_patches(*shaped, total, TEMPERATURE)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    entropy = -(taught * np.log(taught)).sum(-1)
    np.testing.assert_allclose(metrics["teacher_entropy"], entropy.mean(), rtol=1e-5)


def test_a_sure_teacher_has_no_entropy_and_no_nan():
    taught = np.eye(K, dtype=np.float32)[None, :2]
    loss, metrics = cross_view(np.zeros((1, 2, K), np.float32), taught, TEMPERATURE)
    assert float(metrics["teacher_entropy"]) == 0
    assert float(metrics["target_spread"]) == pytest.approx(np.log(2), rel=1e-5)
    np.testing.assert_allclose(loss, np.log(K), rtol=1e-6)
