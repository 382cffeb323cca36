"""Resizes learned position embeddings on a grid to another grid."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def _bicubic_antialias(grid, shape):
    return jax.image.resize(grid, shape, "cubic", antialias=True)


def _hf_dinov2(grid, shape):
    return jax.image.resize(grid, shape, "cubic-pytorch", antialias=False)


def _dinov2(grid, shape):
    # Their guard against rounding errors in the size, + 0.1, also changes the coordinates.
    scale = jnp.array([(new + 0.1) / old for new, old in zip(shape[:2], grid.shape[:2], strict=True)])
    return jax.image.scale_and_translate(
        grid, shape, (0, 1), scale, jnp.zeros(2), "cubic-pytorch", antialias=False
    )


# How published models resize their tables. The kernel is Keys' with a = -0.5 where antialiased, as
# by Pillow, and with a = -0.75 where not, as by PyTorch.
RESIZES = {
    # By size, antialiased: open_clip, DINOv2 with registers, all of timm.
    "bicubic_antialias": _bicubic_antialias,
    # By the factor (new + 0.1) / old: DINO, iBOT, DINOv2 without registers.
    "dinov2": _dinov2,
    # By size: the same weights, and ViT, in transformers.
    "hf_dinov2": _hf_dinov2,
}


def resize_position_embedding(
    table, old_grid: tuple[int, int], new_grid: tuple[int, int], how: str = "bicubic_antialias"
):
    """Resizes a table for images of another size.

    Args:
      table: [P + h * w, D]. The first P rows, such as a class token's, stay unchanged; the others are a map
        of size (h, w), row by row.
      old_grid: (h, w).
      new_grid: (h', w'); if it equals old_grid the table is returned unchanged.
      how: a name in RESIZES.

    Returns:
      [P + h' * w', D].

    Raises:
      ValueError: if the table has fewer than h * w rows.
    """
    prefix = len(table) - math.prod(old_grid)
    if prefix < 0:
        raise ValueError(f"position embedding: {len(table)} rows are no grid of {old_grid}")
    if tuple(old_grid) == tuple(new_grid):
        return table
    width = table.shape[1]
    grid = RESIZES[how](table[prefix:].reshape(*old_grid, width), (*new_grid, width))
    return jnp.concatenate([table[:prefix], grid.reshape(-1, width)])


def resize_square_table(table: np.ndarray, shape: tuple[int, ...], prefix: int) -> np.ndarray | None:
    """Resizes a table of a square grid for another square grid.

    Args:
      table: [prefix + n * n, D].
      shape: the new shape, (prefix + m * m, D).
      prefix: how many rows before the grid stay unchanged.

    Returns:
      float32 of that shape; None if either shape is not of this form.
    """
    old, new = (round(math.sqrt(rows - prefix)) for rows in (len(table), shape[0]))
    if table.shape[1:] != shape[1:] or (prefix + old**2, prefix + new**2) != (len(table), shape[0]):
        return None
    return np.asarray(resize_position_embedding(table, (old, old), (new, new)))
