"""The losses of depth maps against float64 references written from the definitions, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.losses import depth as losses

RNG = np.random.default_rng(0)
# Three images that share one variance, the second one without any valid pixel.
SHAPE = (3, 9, 15)
DEPTH = RNG.uniform(0.1, 9, SHAPE)
TRUTH = np.where(RNG.random(SHAPE) < 0.3, 0, RNG.uniform(0.1, 9, SHAPE))
TRUTH[1] = 0


def sig_by_hand(depth, truth, warming_up):
    errors = [
        np.log(d + 1e-3) - np.log(t + 1e-3) for d, t in zip(depth.flat, truth.flat, strict=True) if t > 0
    ]
    mean = np.mean(errors)
    variance = 0 if warming_up else np.sum((errors - mean) ** 2) / (len(errors) - 1)
    return np.sqrt(variance + 0.15 * mean**2)


def gradient_by_hand(depth, truth):
    total = 0.0
    for step in (1, 2, 4, 6):
        summed = count = 0
        for d, t in zip(depth[:, ::step, ::step], truth[:, ::step, ::step], strict=True):
            errors, (height, width) = np.log(d + 1e-3) - np.log(t + 1e-3), t.shape
            count += (t > 0).sum()
            for i in range(height):
                for j in range(width):
                    for k, m in ((i + 2, j), (i, j + 2)):
                        if k < height and m < width and t[i, j] > 0 and t[k, m] > 0:
                            summed += abs(errors[i, j] - errors[k, m])
        total += summed / count
    return total


@jax.jit
def ours(depth, truth):
    """[3]: the loss, the loss in the warm-up, and the gradient loss; and their gradients by the depth."""

    def every(depth):
        errors, valid = losses.log_errors(depth, truth)
        values = [losses.scale_invariant_log_loss(errors, valid, early) for early in (False, True)]
        return jnp.stack([*values, losses.gradient_loss(errors, valid)])

    return every(depth), jax.jacrev(every)(depth)


REFERENCES = (
    lambda depth: sig_by_hand(depth, TRUTH, False),
    lambda depth: sig_by_hand(depth, TRUTH, True),
    lambda depth: gradient_by_hand(depth, TRUTH),
)


def test_values_and_gradients():
    values, grads = ours(DEPTH, TRUTH)
    step = 1e-6 * RNG.normal(size=SHAPE)
    for value, grad, reference in zip(values, np.asarray(grads, np.float64), REFERENCES, strict=True):
        np.testing.assert_allclose(value, reference(DEPTH), rtol=1e-5)
        slope = (reference(DEPTH + step) - reference(DEPTH - step)) / 2
        np.testing.assert_allclose((grad * step).sum(), slope, rtol=1e-3)
        assert not grad[TRUTH == 0].any()


@pytest.mark.parametrize("known", [0, 1])
def test_images_without_valid_pixels_have_no_loss_and_finite_gradients(known):
    """One valid pixel has no variance either; unknown pixels of any value do not count."""
    truth = np.zeros(SHAPE)
    truth[0, 0, :known] = DEPTH[0, 0, :known]
    values, grads = ours(np.where(truth > 0, DEPTH, 0), truth)
    np.testing.assert_array_equal(values, 0)
    assert np.isfinite(grads).all()
    np.testing.assert_array_equal(grads, 0)


def test_a_perfect_prediction_has_no_loss_and_a_finite_gradient():
    values, grads = ours(DEPTH, DEPTH)
    np.testing.assert_array_equal(values, 0)
    assert np.isfinite(grads).all()


def test_a_scaled_prediction_leaves_the_mean_alone():
    """The variance and the gradient loss do not see a common factor; the mean does, with weight 0.15."""
    truth = np.where(TRUTH > 0, TRUTH, 1)
    values, _ = ours(3 * (truth + 1e-3) - 1e-3, truth)
    np.testing.assert_allclose(values, [np.sqrt(0.15) * np.log(3)] * 2 + [0], atol=1e-4)
