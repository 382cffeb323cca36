"""The implementations of deformable convolution against loops over taps and corners in float64.

tests/parity compares them with torchvision's.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import deformable_convolution as dcn
from big_ssl.models.flops import forward_flops

IMPLEMENTATIONS = sorted(dcn.IMPLEMENTATIONS)


def reference(x, offsets, mask, kernel, bias, stride):
    """Equation 1 of arXiv 1811.11168: every tap reads its four neighbours, zeros outside the map."""
    height, width, k = x.shape[1], x.shape[2], kernel.shape[0]
    y = np.zeros((*mask.shape[:3], kernel.shape[-1])) + bias
    for b, i, j, tap in np.ndindex(*mask.shape):
        row, column = divmod(tap, k)
        py = i * stride - k // 2 + row + offsets[b, i, j, 2 * tap]
        px = j * stride - k // 2 + column + offsets[b, i, j, 2 * tap + 1]
        for qy, qx in itertools.product((np.floor(py), np.floor(py) + 1), (np.floor(px), np.floor(px) + 1)):
            if 0 <= qy < height and 0 <= qx < width:
                weight = (1 - abs(py - qy)) * (1 - abs(px - qx)) * mask[b, i, j, tap]
                y[b, i, j] += weight * x[b, int(qy), int(qx)] @ kernel[row, column]
    return y


def random_inputs(height, width, stride, scale, k=3, seed=0):
    rng = np.random.default_rng(seed)
    positions = (1, -(-height // stride), -(-width // stride))
    return dict(
        x=rng.normal(size=(1, height, width, 2)).astype(np.float32),
        offsets=(scale * rng.normal(size=(*positions, 2 * k * k))).astype(np.float32),
        mask=rng.uniform(size=(*positions, k * k)).astype(np.float32),
        kernel=rng.normal(size=(k, k, 2, 3)).astype(np.float32),
        bias=rng.normal(size=3).astype(np.float32),
    )


@functools.cache
def value_and_gradients(implementation, stride):
    """jitted: of the sum of y * weights, with y."""

    def loss(inputs, weights):
        y = dcn.deformable_conv(**inputs, stride=stride, implementation=implementation)
        return (y * weights).sum(), y

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_equal_to_reference(inputs, stride, implementation, gradients=20):
    """Compares the output, and gradients with central differences of the reference at random places."""
    wide = {name: value.astype(float) for name, value in inputs.items()}
    expected = reference(**wide, stride=stride)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=expected.shape)
    (_, y), grads = value_and_gradients(implementation, stride)(inputs, weights.astype(np.float32))
    np.testing.assert_allclose(y, expected, atol=1e-4)
    names = sorted(wide)
    for name in (names[i] for i in rng.integers(0, len(names), gradients)):
        place = tuple(rng.integers(0, wide[name].shape))
        values = []
        for step in (1e-5, -1e-5):
            moved = dict(wide)
            moved[name] = wide[name].copy()
            moved[name][place] += step
            values.append((reference(**moved, stride=stride) * weights).sum())
        np.testing.assert_allclose(grads[name][place], (values[0] - values[1]) / 2e-5, atol=2e-4)


# Of odd sides, and wider than a window: in some a tap leaves its window, and the map by far.
SHAPE = (9, 19)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("stride", "scale"), [(1, 1.5), (1, 12), pytest.param(2, 1.5, marks=pytest.mark.slow)]
)
def test_output_and_gradients(implementation, stride, scale):
    inputs = random_inputs(*SHAPE, stride, scale)
    positions = dcn._positions(inputs["x"], inputs["offsets"], stride)
    assert dcn._within_windows(positions, inputs["x"].shape, stride) == (scale < 2)
    assert_equal_to_reference(inputs, stride, implementation, gradients=6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_whole_and_endless_offsets(implementation):
    """Without offsets it is a convolution; its slope is that to the next pixel, and nothing far outside."""
    run, ones = value_and_gradients(implementation, 1), np.ones((1, *SHAPE, 3), np.float32)
    inputs = random_inputs(*SHAPE, 1, 0)
    inputs["mask"] = np.ones_like(inputs["mask"])
    conv = nn.Conv(3, (3, 3), padding=1)
    params = dict(kernel=inputs["kernel"], bias=inputs["bias"])
    (_, y), grads = run(inputs, ones)
    np.testing.assert_allclose(y, conv.apply(dict(params=params), inputs["x"]), atol=1e-4)
    after = run(inputs | dict(offsets=inputs["offsets"] + np.float32(1e-3)), ones)[1]
    np.testing.assert_allclose(after["offsets"], grads["offsets"], atol=0.05)
    endless = inputs["offsets"] + np.float32(1e9)
    # Taps that read nothing leave no window.
    assert dcn._within_windows(dcn._positions(inputs["x"], endless, 1), inputs["x"].shape, 1)
    (_, y), grads = run(inputs | dict(offsets=endless), ones)
    np.testing.assert_array_equal(y, np.broadcast_to(inputs["bias"], y.shape))
    assert not np.asarray(grads["offsets"]).any()


@pytest.mark.slow
def test_half_precision_keeps_positions_exact():
    """Offsets of a wide map in bfloat16 would be wrong by pixels."""
    inputs = random_inputs(3, 40, 1, 0.3)
    half = inputs | dict(x=inputs["x"].astype(jnp.bfloat16))
    run = jax.jit(functools.partial(dcn.deformable_conv, implementation="gather"))
    y, expected = run(**half), run(**inputs)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(offsets=np.zeros((1, 5, 4, 18), np.float32)),
            r"offsets have the shape .*must be \(1, 5, 5, 18",
        ),
        (dict(mask=np.zeros((1, 5, 5, 18), np.float32)), r"mask have the shape .*must be \(1, 5, 5, 9"),
        (dict(kernel=np.zeros((2, 2, 2, 3), np.float32)), "odd square kernel"),
        (dict(implementation="tile"), "there are auto, gather, one_hot, tiles"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dcn.deformable_conv(**random_inputs(5, 5, 1, 1) | change)


def test_flops_off_tpu():
    """Four products a tap, whatever the size of the map."""
    for size in (10, 40):
        flops = forward_flops(functools.partial(dcn.deformable_conv, **random_inputs(size, size, 1, 1)))
        assert flops == 2 * 9 * size * size * (2 * 3 + 2 * 4)
