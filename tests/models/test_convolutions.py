"""Every form of every convolution against its definition in float64, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from big_ssl.models import convolutions

BATCH, CHANNELS, OUT = 3, 4, 5
SAME = "SAME"
TORCH_3, TORCH_5 = ((0, 1), (0, 1)), ((1, 2), (1, 2))  # PyTorch ports pad stride 2 so, whatever the size
# (kernel, stride, size, padding)
LARGE = (3, 1, (15, 16), SAME)  # too large for the dense form
CASES = [
    *((k, s, (7, 10), SAME) for k in (3, 5) for s in (1, 2)),
    *((k, 2, (8, 8), SAME) for k in (3, 5)),
    (3, 2, (7, 10), TORCH_3),
    (5, 2, (9, 6), TORCH_5),
    (3, 2, (8, 7), ((0, 1), (1, 0))),  # each axis its own
    (3, 2, (1, 2), SAME),  # smaller than the kernel
    LARGE,
]
DEPTHWISE = {
    "dense": convolutions.depthwise_dense,
    "shifted": convolutions.depthwise_shifted,
    "grouped": convolutions.depthwise_grouped,
    "public": convolutions.depthwise_conv,
}


def our_padding(x, k, stride, padding):
    return convolutions.spatial_padding(x, k, stride) if padding == SAME else padding


def inputs(size, kernel_shape):
    rng = np.random.default_rng(0)
    return rng.normal(size=(CHANNELS, BATCH, *size)), rng.normal(size=kernel_shape)


def value_and_gradients(function, x, kernel):
    """y and the gradients, with respect to both inputs, of y's product with a fixed random array."""

    def run(x, kernel):
        y, pullback = jax.vjp(function, x, kernel)
        return y, *pullback(cotangent(y.shape).astype(np.float32))

    # Unoptimised, which halves the time to compile.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(
        x.astype(np.float32), kernel.astype(np.float32)
    )


def cotangent(shape):
    return np.random.default_rng(1).normal(size=shape)


def reference(x, kernel, stride, padding):
    """The same from the definition, in float64; a kernel [k, k, Cin, Cout] is dense, [k, k, C] depthwise."""
    k, size = kernel.shape[0], x.shape[2:]
    pads = lax.padtype_to_pads(size, (k, k), (stride, stride), padding) if padding == SAME else padding
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    names = "cbpqij,ijco->obpq" if kernel.ndim == 4 else "cbpqij,ijc->cbpq"
    left, right, out = names.replace("->", ",").split(",")
    y = np.einsum(names, windows, kernel)
    grad = cotangent(y.shape)
    d_windows = np.einsum(f"{right},{out}->{left}", kernel, grad)
    d_x = np.zeros_like(padded)
    for p, q in np.ndindex(y.shape[2:]):
        rows, cols = p * stride, q * stride
        d_x[:, :, rows : rows + k, cols : cols + k] += d_windows[:, :, p, q]
    (top, _), (before, _) = pads
    d_x = d_x[:, :, top : top + size[0], before : before + size[1]]
    return y, d_x, np.einsum(f"{left},{out}->{right}", windows, grad)


def assert_agree(found, expected, form):
    for ours, theirs, name in zip(found, expected, ("value", "d_x", "d_kernel"), strict=True):
        # Sums of up to a few hundred float32 products of order one.
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5, err_msg=f"{form}: {name}")


@pytest.mark.parametrize(("k", "stride", "size", "padding"), CASES)
def test_every_depthwise_form_agrees_with_the_definition(k, stride, size, padding):
    x, kernel = inputs(size, (k, k, CHANNELS))
    options = dict(stride=stride, padding=our_padding(x, k, stride, padding))
    expected = reference(x, kernel, stride, padding)
    for name, form in DEPTHWISE.items():
        assert_agree(value_and_gradients(functools.partial(form, **options), x, kernel), expected, name)


@pytest.mark.parametrize(("k", "stride", "size", "padding"), CASES)
def test_conv_agrees_with_the_definition(k, stride, size, padding):
    x, kernel = inputs(size, (k, k, CHANNELS, OUT))
    options = dict(stride=stride, padding=our_padding(x, k, stride, padding))
    found = value_and_gradients(functools.partial(convolutions.conv, **options), x, kernel)
    assert_agree(found, reference(x, kernel, stride, padding), "conv")


def test_pointwise_is_a_1x1_convolution():
    x, kernel = inputs((6, 9), (1, 1, CHANNELS, OUT))
    found = value_and_gradients(lambda x, w: convolutions.pointwise_conv(x, w[0, 0]), x, kernel)
    assert_agree(found, reference(x, kernel, 1, SAME), "pointwise")


@pytest.mark.parametrize(("k", "stride", "size", "padding"), [(3, 1, (4, 4), SAME), LARGE])
def test_the_cpu_form_is_dense_for_small_maps_and_shifted_for_large_ones(k, stride, size, padding):
    x, kernel = jnp.zeros((CHANNELS, BATCH, *size)), jnp.zeros((k, k, CHANNELS))
    run = functools.partial(
        convolutions.depthwise_cpu, stride=stride, padding=our_padding(x, k, stride, padding)
    )
    products = str(jax.make_jaxpr(run)(x, kernel)).count("dot_general")
    assert bool(products) == (size == (4, 4))


def test_gradient_accepts_padding_given_as_lists():
    x, kernel = jnp.ones((CHANNELS, 1, 4, 4)), jnp.ones((3, 3, CHANNELS))
    grad = jax.grad(lambda x: convolutions.depthwise_conv(x, kernel, 2, [[0, 1], [0, 1]]).sum())(x)
    # With two outputs an axis, only the tap at index 2 is read twice.
    np.testing.assert_array_equal(grad[0, 0], np.outer([1, 1, 2, 1], [1, 1, 2, 1]))


@pytest.mark.parametrize("form", DEPTHWISE)
def test_bfloat16_stays_bfloat16(form):
    x, kernel = jnp.ones((2, 1, 4, 4), jnp.bfloat16), jnp.ones((3, 3, 2), jnp.bfloat16)
    y = DEPTHWISE[form](x, kernel, stride=1, padding=((1, 1), (1, 1)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y[0, 0].astype(np.float32), np.outer([2, 3, 3, 2], [2, 3, 3, 2]))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (8, 3, 1, (1, 1)),
        (8, 5, 1, (2, 2)),
        (8, 1, 1, (0, 0)),
        (8, 3, 2, (0, 1)),  # the extra zero goes behind
        (7, 3, 2, (1, 1)),
        (8, 5, 2, (1, 2)),
        (7, 5, 2, (2, 2)),
        (289, 3, 2, (1, 1)),
        (600, 3, 2, (0, 1)),
        (8, 1, 2, (0, 0)),  # never negative
        (1, 3, 2, (1, 1)),
        (8, 2, 1, (0, 1)),
    ],
)
def test_same_padding_table(size, kernel, stride, expected):
    assert convolutions.same_padding(size, kernel, stride) == expected


@pytest.mark.parametrize(("kernel", "expected"), [(3, (0, 1)), (5, (1, 2))])
def test_fixed_padding_does_not_see_the_size(kernel, expected):
    """Less before than after where it strides, k // 2 on both sides where it does not."""
    for size in range(2, 20):
        assert convolutions.fixed_padding(size, kernel, 2) == expected
        assert convolutions.fixed_padding(size, kernel, 1) == (kernel // 2, kernel // 2)
        if size % 2 == 0:
            assert convolutions.same_padding(size, kernel, 2) == expected


def test_same_padding_is_tensorflows_rule():
    """The rule as tf.nn's documentation words it, which goes by the remainder of the size."""
    for size in range(1, 40):
        for kernel in (1, 2, 3, 5, 7):
            for stride in (1, 2, 3, 4):
                total = max(kernel - (size % stride or stride), 0)
                before, after = convolutions.same_padding(size, kernel, stride)
                assert (before, after) == (total // 2, total - total // 2)
                assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
