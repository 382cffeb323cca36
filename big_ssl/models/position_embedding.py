"""Learned tables of positions on a grid, and the same table for another grid."""

import math

import jax
import jax.numpy as jnp


def resize_position_embedding(table, old_grid: tuple[int, int], new_grid: tuple[int, int]):
    """A table for images of another size. table: [P + h * w, D] -> [P + h' * w', D].

    The first P rows, those of a class token and its like, stay as they are; the others are a map
    of old_grid = (h, w), row by row. Bicubic (a = -0.5) with antialiasing, as Pillow, open_clip
    and PyTorch's antialias=True do it; PyTorch without it has a = -0.75, other values.
    Raises ValueError where the table has fewer than h * w rows.
    """
    prefix = len(table) - math.prod(old_grid)
    if prefix < 0:
        raise ValueError(f"position embedding: {len(table)} rows are no grid of {old_grid}")
    if tuple(old_grid) == tuple(new_grid):
        return table
    width = table.shape[1]
    grid = jax.image.resize(
        table[prefix:].reshape(*old_grid, width), (*new_grid, width), "bicubic", antialias=True
    )
    return jnp.concatenate([table[:prefix], grid.reshape(-1, width)])
