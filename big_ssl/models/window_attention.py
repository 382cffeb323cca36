"""Attention within windows, with a bias for the relative position: Swin's (Liu et al. 2021, arXiv
2103.14030) and Swin V2's (Liu et al. 2022, arXiv 2111.09883)."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.models import windows as windows_lib
from big_ssl.models.attention import attention
from big_ssl.models.transformer import LayerConfig, dense
from big_ssl.models.windows import Windows

_init = nn.initializers.normal(0.02)

# Swin V2: hidden units of the network that computes the bias, the bias's maximum, and the relative position
# at the border of the pre-training window, before the logarithm.
_HIDDEN = 512
_LARGEST_BIAS = 16.0
_BORDER = 8.0
# Swin V2: the scale of the cosines starts at 10 and is at most 100. Shorter vectors count as zero.
LOG_SCALE = math.log(10.0)
_MAX_LOG_SCALE = math.log(100.0)
_EPSILON = 1e-12


class PositionTable(nn.Module):
    """Swin's bias: a learned value for each head and relative position in a window of side `window`.

    __call__(side, at most window) -> float32[H, T, T] for the T positions in a window of that side.
    """

    heads: int
    window: int

    @nn.compact
    def __call__(self, side: int):
        table = self.param("table", _init, ((2 * self.window - 1) ** 2, self.heads))
        return windows_lib.by_relative_position(table.astype(jnp.float32), side)


class ContinuousPosition(nn.Module):
    """Swin V2's bias: a small network of the relative position's logarithm; called as PositionTable.

    pretrained_window: the side by which relative positions are normalised, 0 for that of the call: also where
      a map clamps the window, as in the published code, whose windows are those of the size it is built for.
    """

    heads: int
    pretrained_window: int

    @nn.compact
    def __call__(self, side: int):
        positions = np.arange(1 - side, side) / max(1, (self.pretrained_window or side) - 1) * _BORDER
        positions = np.sign(positions) * np.log2(np.abs(positions) + 1) / np.log2(_BORDER)
        grid = np.stack(np.meshgrid(positions, positions, indexing="ij"), axis=-1).reshape(-1, 2)
        hidden = nn.Dense(_HIDDEN, kernel_init=_init, name="hidden")(jnp.asarray(grid, jnp.float32))
        table = nn.Dense(self.heads, use_bias=False, kernel_init=_init, name="out")(nn.relu(hidden))
        return windows_lib.by_relative_position(_LARGEST_BIAS * nn.sigmoid(table), side)


def window_attention(width: int, config: LayerConfig, position_bias: nn.Module, log_scale=None) -> Callable:
    """Attention within the windows of a map: f(x: [B, H, W, D], windows, shift) -> [B, H, W, D].

    Only for use inside a module's compact method; it creates the parameters query, key, value, out, which all
    calls of the function share.

    Args:
      width: D.
      config: of the layer.
      position_bias: a PositionTable or ContinuousPosition.
      log_scale: None for Swin's scaled products; float32[heads] for Swin V2, whose scores are cosines times
        exp(log_scale).
    """
    init_std, heads = config.init_std, config.heads
    query, key, value = (
        dense(name, width, init_std.attention, config, name[0] in config.qkv_bias)
        for name in ("query", "key", "value")
    )
    out = dense("out", width, init_std.out, config)

    def attend(x, windows: Windows, shift: int):
        tokens = windows_lib.partition(x, windows, shift)
        q, k, v = (
            project(tokens).reshape(*tokens.shape[:3], heads, width // heads)
            for project in (query, key, value)
        )
        if log_scale is not None:
            q, k = _cosine(q, k, log_scale)
        # Each window of each head is a head to `attention`: examples stay its first axis, and one bias serves
        # all of them.
        q, k, v = (y.reshape(*tokens.shape[:2], -1, width // heads) for y in (q, k, v))
        bias = _bias(position_bias(windows.window), windows, shift)
        y = attention(q, k, v, bias=bias, implementation=config.attention)
        return windows_lib.merge(out(y.reshape(tokens.shape)), windows, shift)

    return attend


def _cosine(q, k, log_scale):
    """q, k: [..., heads, d], whose scaled product is the cosine times exp(log_scale)."""
    scale = jnp.exp(jnp.minimum(log_scale, _MAX_LOG_SCALE)) * math.sqrt(q.shape[-1])
    return (scale[:, None] * _unit(q)).astype(q.dtype), _unit(k).astype(k.dtype)


def _unit(x):
    x = x.astype(jnp.float32)
    square = (x**2).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, _EPSILON**2))


def _bias(by_head, windows, shift):
    """float32[1, n * H, T, T], for all heads of all windows, from [H, T, T]."""
    count = math.prod(windows.padded) // windows.window**2
    if shift:
        bias = windows_lib.shift_bias(windows, shift) + by_head
    else:
        bias = jnp.broadcast_to(by_head, (count, *by_head.shape))
    return bias.reshape(1, -1, *by_head.shape[1:])
