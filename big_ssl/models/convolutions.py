"""Convolutions in channel-major order, [C, B, H, W].

Why channel-major: on accelerators XLA picks the physical layout itself, so the logical
order costs nothing; on CPU the logical order is the physical one, and there channels first
makes a 1x1 convolution one matrix product, a batch-norm sum a contiguous row sum, and a
depthwise convolution a batch of small matrix products. Measured in docs/performance.md.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Above this many entries a channel's dense matrix costs more than the k*k shifted products.
_MAX_DENSE_ENTRIES = 200 * 200


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one spatial axis, (before, after), after >= before."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def fixed_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """SAME padding computed for an even size, also at odd ones: Keras's padding for an unknown size."""
    return same_padding(size + size % 2, kernel, stride)


# By their names in configs; they differ for a stride of 2 at an odd size.
PADDINGS = {"same": same_padding, "fixed": fixed_padding}


def spatial_padding(x, kernel: int, stride: int, padding: str = "same"):
    """The padding ((before, after), (before, after)) of x: [C, B, H, W]; padding: a name in PADDINGS."""
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}; there are {', '.join(PADDINGS)}")
    pad = PADDINGS[padding]
    return pad(x.shape[2], kernel, stride), pad(x.shape[3], kernel, stride)


def pointwise_conv(x, kernel):
    """1x1 convolution. x: [Cin, B, H, W], kernel: [Cin, Cout] -> [Cout, B, H, W]."""
    return jnp.einsum("io,ibhw->obhw", kernel, x)


def conv(x, kernel, stride: int, padding):
    """Full convolution, for the stem. x: [Cin, B, H, W], kernel: [k, k, Cin, Cout].

    Written as a matrix product over gathered taps: with three input channels that is cheap
    everywhere, and its gradient needs no convolution either.
    """
    k, _, cin, cout = kernel.shape
    taps = jnp.concatenate(list(_taps(x, k, stride, padding)), axis=0)
    return pointwise_conv(taps, kernel.reshape(k * k * cin, cout))


def full_conv(x, kernel, stride: int = 1):
    """Full convolution with k // 2 zeros around, between wide maps.

    x: [Cin, B, H, W], kernel: [k, k, Cin, Cout] -> [Cout, B, H', W']. XLA's own: gathered taps as
    in `conv` would be k * k times the map.
    """
    margin = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(margin, margin)] * 2,
        dimension_numbers=("CNHW", "HWIO", "CNHW"),
    )


def depthwise_conv(x, kernel, stride: int, padding):
    """One k x k filter per channel. x: [C, B, H, W], kernel: [k, k, C] -> [C, B, H', W'].

    XLA's CPU backend runs grouped convolutions as scalar loops, so on CPU this is a product
    with each channel's dense [H*W, H'*W'] matrix where the map is small, and k*k shifted
    multiply-adds where it is large; elsewhere it is XLA's own grouped convolution.
    """
    return _depthwise(x, kernel, stride, tuple(map(tuple, padding)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
    static = dict(stride=stride, padding=padding)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(depthwise_cpu, **static),
        default=functools.partial(depthwise_grouped, **static),
    )


def _depthwise_fwd(x, kernel, stride, padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _depthwise_bwd(stride, padding, residuals, grad):
    # The derivative is taken inside each platform's branch: differentiating the choice itself
    # would keep the residuals of both.
    def pullback(method):
        def run(x, kernel, grad):
            return jax.vjp(functools.partial(method, stride=stride, padding=padding), x, kernel)[1](grad)

        return run

    return lax.platform_dependent(
        *residuals, grad, cpu=pullback(depthwise_cpu), default=pullback(depthwise_grouped)
    )


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def depthwise_cpu(x, kernel, *, stride, padding):
    """The faster of the two CPU forms for this map size; see depthwise_conv."""
    out = _output_sizes(x, kernel.shape[0], stride, padding)
    entries = x.shape[2] * x.shape[3] * out[0] * out[1]
    method = depthwise_dense if entries <= _MAX_DENSE_ENTRIES else depthwise_shifted
    return method(x, kernel, stride=stride, padding=padding)


def depthwise_grouped(x, kernel, *, stride, padding):
    """XLA's grouped convolution."""
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        padding,
        dimension_numbers=("CNHW", "HWIO", "CNHW"),
        feature_group_count=x.shape[0],
    )


def depthwise_shifted(x, kernel, *, stride, padding):
    """k*k shifted multiply-adds."""
    k = kernel.shape[0]
    weights = kernel.reshape(k * k, -1, 1, 1, 1)
    return sum(tap * weight for tap, weight in zip(_taps(x, k, stride, padding), weights, strict=True))


def depthwise_dense(x, kernel, *, stride, padding):
    """Each channel's filter unrolled to a dense matrix over positions; one batched product."""
    channels, batch, height, width = x.shape
    out = _output_sizes(x, kernel.shape[0], stride, padding)
    rows = _placement(height, out[0], kernel.shape[0], stride, padding[0][0])
    cols = _placement(width, out[1], kernel.shape[0], stride, padding[1][0])
    dense = jnp.einsum("ijc,ipq,jrs->cprqs", kernel, rows.astype(x.dtype), cols.astype(x.dtype))
    dense = dense.reshape(channels, height * width, out[0] * out[1])
    y = jnp.einsum("cbp,cpq->cbq", x.reshape(channels, batch, height * width), dense)
    return y.reshape(channels, batch, *out)


def _taps(x, k, stride, padding):
    """Yields the k*k shifted views [C, B, H', W'] of x, in the kernel's row-major order."""
    out = _output_sizes(x, k, stride, padding)
    x = jnp.pad(x, ((0, 0), (0, 0), *padding))
    for i in range(k):
        for j in range(k):
            stop_i, stop_j = i + (out[0] - 1) * stride + 1, j + (out[1] - 1) * stride + 1
            yield x[:, :, i:stop_i:stride, j:stop_j:stride]


def _output_sizes(x, k, stride, padding):
    return tuple((n + sum(pad) - k) // stride + 1 for n, pad in zip(x.shape[2:], padding, strict=True))


def _placement(size, out, k, stride, before):
    """0/1 array [k, size, out]: tap i of output q reads input p."""
    tap, p, q = np.ogrid[:k, :size, :out]
    return (p == q * stride + tap - before).astype(np.float32)
