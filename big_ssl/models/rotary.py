"""Rotary positions of patches (Su et al. 2021, arXiv 2104.09864; over two axes, as in DINOv3, Siméoni et al.
2025, arXiv 2508.10104, section 3.2, and Perception Encoder, Bolya et al. 2025, arXiv 2504.13181). Attention
depends on relative positions only."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rope(NamedTuple):
    """cos, sin: float32[N, d], of the angles of N patches for heads of width d."""

    cos: jax.Array
    sin: jax.Array


def rope_periods(head_dim: int, base: float, dtype: str = "float32") -> np.ndarray:
    """float32[d / 4]: base ** (4 i / d) for heads of width d, rounded to dtype, as a file of DINOv3 may store
    them. Raises ValueError if four does not divide d."""
    if head_dim % 4:
        raise ValueError(f"vit: rope_base wants heads of a multiple of 4, and theirs is {head_dim}")
    periods = base ** (np.arange(head_dim // 4) * 4 / head_dim)
    return periods.astype(jnp.dtype(dtype)).astype(np.float32)


def rope_sincos(
    grid: Sequence[int],
    head_dim: int,
    base: float,
    scale=1.0,
    dtype: str = "float32",
    side: int | None = None,
) -> Rope:
    """The angles of a grid of patches.

    A quarter of a head's pairs is rotated by y / base ** (4 i / d), the next quarter by the same of x; (y, x)
    is the patch's position, see `_positions`, times scale.

    Args:
      grid: (h, w), patches along both sides.
      head_dim: d, a multiple of 4.
      base, dtype: of the periods, see rope_periods.
      scale: a factor of the positions, a number or float32[].
      side: of the grid whose positions all others share, in patches; None for DINOv3's.

    Returns:
      The Rope of N = h * w patches, row by row. Raises ValueError if four does not divide head_dim.
    """
    positions = np.stack(np.meshgrid(*(_positions(n, side) for n in grid), indexing="ij"), axis=-1)
    radians = positions[..., None] / rope_periods(head_dim, base, dtype)
    angles = scale * jnp.asarray(radians.reshape(-1, head_dim // 2), jnp.float32)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rope(jnp.cos(angles), jnp.sin(angles))


def _positions(n, side):
    """float[n]: of the patches along one side. DINOv3's are their centres from -2 pi to 2 pi, whatever n is;
    with `side`, 1, 2, 3 ... of a grid of that side, which other grids divide (Perception Encoder)."""
    if side is None:
        return 2 * math.pi * ((2 * np.arange(n) + 1) / n - 1)
    return (np.arange(n) + 1) * side / n


def apply_rope(x, rope: Rope):
    """Rotates the last N tokens of x: [B, T, heads, d], the patches, in pairs (i, i + d / 2); the tokens
    before them have no position and stay unchanged."""
    first = x.shape[1] - len(rope.cos)
    tokens, patches = x[:, :first], x[:, first:].astype(jnp.float32)
    half = patches.shape[-1] // 2
    rotated = jnp.concatenate([-patches[..., half:], patches[..., :half]], axis=-1)
    patches = patches * rope.cos[:, None] + rotated * rope.sin[:, None]
    return jnp.concatenate([tokens, patches.astype(x.dtype)], axis=1)
