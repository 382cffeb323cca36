"""Resizes learned position embeddings on a grid to another grid, each family in its own way.

  | formats | their code | RESIZES |
  |---|---|---|
  | open_clip, openai_clip (its code takes one size) | open_clip's resize_pos_embed | bicubic_antialias |
  | hf_clip, hf_siglip, hf_vit, hf_dinov2 | transformers' interpolate_pos_encoding | bicubic |
  | hf_dinov2 with registers | the same, there with antialias=True | bicubic_antialias |
  | siglip_npz | big_vision's resample_posemb | bilinear_align_corners |
  | dinov2, ibot | DINO's interpolate_pos_encoding, by a factor | dinov2 |
  | dinov2 with registers | the same, with antialias=True, by size | bicubic_antialias |
  | timm_dinov2 | timm's resample_abs_pos_embed | bicubic_antialias |
  | hf_tipsv2 | transformers' interpolate_pos_encoding | bilinear_antialias |

Tables of relative positions, of all formats with a Swin, are resized by "bicubic". hf_align, hf_dinov3 and
dinov3 have no table. tests/parity/test_positions.py and test_swin.py compare each with that code.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.models.interpolation import resize_align_corners


def _bicubic_antialias(grid, shape):
    return jax.image.resize(grid, shape, "cubic", antialias=True)


def _bilinear_antialias(grid, shape):
    return jax.image.resize(grid, shape, "linear", antialias=True)


def _bicubic(grid, shape):
    return jax.image.resize(grid, shape, "cubic-pytorch", antialias=False)


def _bilinear_align_corners(grid, shape):
    return resize_align_corners(grid, shape[:2], precision="highest")


def _dinov2(grid, shape):
    # Their guard against rounding errors in the size, + 0.1, also changes the coordinates.
    scale = jnp.array([(new + 0.1) / old for new, old in zip(shape[:2], grid.shape[:2], strict=True)])
    return jax.image.scale_and_translate(
        grid, shape, (0, 1), scale, jnp.zeros(2), "cubic-pytorch", antialias=False
    )


# How published models resize their tables. The kernel is Keys' with a = -0.5 where antialiased, as
# by Pillow, and with a = -0.75 where not, as by PyTorch.
RESIZES = {
    # By size, antialiased.
    "bicubic_antialias": _bicubic_antialias,
    # By the factor (new + 0.1) / old.
    "dinov2": _dinov2,
    # By size.
    "bicubic": _bicubic,
    # By size, antialiased.
    "bilinear_antialias": _bilinear_antialias,
    # As scipy.ndimage.zoom of order 1: the grid's outermost positions stay the outermost.
    "bilinear_align_corners": _bilinear_align_corners,
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


def resize_square_table(
    table: np.ndarray, shape: tuple[int, ...], prefix: int, how: str = "bicubic_antialias"
) -> np.ndarray | None:
    """Resizes a table of a square grid for another square grid.

    Args:
      table: [prefix + n * n, D].
      shape: the new shape, (prefix + m * m, D).
      prefix: how many rows before the grid stay unchanged.
      how: a name in RESIZES.

    Returns:
      float32 of that shape; None if either shape is not of this form.
    """
    old, new = (round(math.sqrt(rows - prefix)) for rows in (len(table), shape[0]))
    if table.shape[1:] != shape[1:] or (prefix + old**2, prefix + new**2) != (len(table), shape[0]):
        return None
    return np.asarray(resize_position_embedding(table, (old, old), (new, new), how))
