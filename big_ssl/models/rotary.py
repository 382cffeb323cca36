"""Rotary positions of patches (Su et al. 2021, arXiv 2104.09864; over two axes, as in DINOv3, Siméoni et al.
2025, arXiv 2508.10104, section 3.2): what attention sees of places is how far apart they are."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rotation(NamedTuple):
    """cos, sin: float32[N, d] of each patch's angles, of heads of width d."""

    cos: jax.Array
    sin: jax.Array


def rotation(grid: Sequence[int], head_dim: int, base: float, scale=1.0) -> Rotation:
    """Of a grid of patches (h, w), row by row.

    A patch's place is its centre, from -1 to 1 along either side whatever the size, times scale: a number or
    float32[]. A quarter of a head's pairs turn by 2 pi y / base ** (4 i / d), the next by the same of x.
    Raises ValueError where four does not divide head_dim.
    """
    if head_dim % 4:
        raise ValueError(f"vit: rope_base wants heads of a multiple of 4, and theirs is {head_dim}")
    periods = base ** (np.arange(head_dim // 4) * 4 / head_dim)
    places = [(2 * np.arange(n) + 1) / n - 1 for n in grid]
    centres = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)
    turns = 2 * math.pi * centres[..., None] / periods
    angles = scale * jnp.asarray(turns.reshape(-1, head_dim // 2), jnp.float32)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x, by: Rotation):
    """x: [B, T, heads, d], of which the last N tokens are patches: these are turned, in pairs (i, i + d / 2);
    the tokens before them, which have no place, stay."""
    first = x.shape[1] - len(by.cos)
    tokens, patches = x[:, :first], x[:, first:].astype(jnp.float32)
    half = patches.shape[-1] // 2
    turned = jnp.concatenate([-patches[..., half:], patches[..., :half]], axis=-1)
    patches = patches * by.cos[:, None] + turned * by.sin[:, None]
    return jnp.concatenate([tokens, patches.astype(x.dtype)], axis=1)
