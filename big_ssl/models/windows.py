"""Windows of a map: how Swin splits it, shifts it and merges it again (Liu et al. 2021, arXiv 2103.14030).

A map is padded with zeros at the right and the bottom to whole windows. As in the published code the padding
is attended to; only parts that are no neighbours in the map, which a cyclic shift brings into one window, do
not see each other.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

# Added to the scores of queries and keys from different parts of a shifted map, as published: not -inf.
_MASKED = -100.0


class Windows(NamedTuple):
    """window: the side of a window; shift: by how much the shifted windows are moved, 0 if they are not;
    height, width: of the map."""

    window: int
    shift: int
    height: int
    width: int

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width in whole windows."""
        height, width = (size + -size % self.window for size in (self.height, self.width))
        return height, width


def split(height: int, width: int, window: int, clamp: bool) -> Windows:
    """The windows of a map.

    Args:
      height, width: of the map.
      window: the side of a window.
      clamp: whether a map that is no larger than a window, along either side, has windows of its smaller
        side, which are not shifted (classification); otherwise it is padded and shifted (detection).
    """
    if clamp and min(height, width) <= window:
        return Windows(min(height, width), 0, height, width)
    return Windows(window, window // 2, height, width)


def partition(x, windows: Windows, shift: int):
    """[B, H, W, C] -> [B, T, n, C]: the T positions of each of n windows, both row by row.

    shift: by how many rows and columns the windows are moved to the bottom right.
    """
    side, (height, width) = windows.window, windows.padded
    x = jnp.pad(x, ((0, 0), (0, height - windows.height), (0, width - windows.width), (0, 0)))
    if shift:
        x = jnp.roll(x, (-shift, -shift), (1, 2))
    x = x.reshape(len(x), height // side, side, width // side, side, -1).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(len(x), side**2, -1, x.shape[-1])


def merge(x, windows: Windows, shift: int):
    """The inverse of `partition`: [B, T, n, C] -> [B, H, W, C]."""
    side, (height, width) = windows.window, windows.padded
    x = x.reshape(len(x), side, side, height // side, width // side, -1).transpose(0, 3, 1, 4, 2, 5)
    x = x.reshape(len(x), height, width, -1)
    if shift:
        x = jnp.roll(x, (shift, shift), (1, 2))
    return x[:, : windows.height, : windows.width]


def shift_bias(windows: Windows, shift: int):
    """float32[n, 1, T, T], added to the scores in shifted windows: 0 for two positions from one part of the
    map, -100 for others."""
    side, (height, width) = windows.window, windows.padded
    rows, columns = (
        (np.arange(size) >= size - side).astype(np.int8) + (np.arange(size) >= size - shift)
        for size in (height, width)
    )
    grid = 3 * rows[:, None] + columns
    grid = grid.reshape(height // side, side, width // side, side).transpose(0, 2, 1, 3)
    parts = jnp.asarray(grid.reshape(-1, 1, side**2))
    return jnp.where(parts[..., :, None] == parts[..., None, :], 0.0, _MASKED)


def by_relative_position(table, side: int):
    """Looks up a value for each pair of positions in a window.

    Args:
      table: float32[(2 S - 1) ** 2, H], H values for each relative position in a window of side S.
      side: of the window, at most S; its relative positions are the middle of the table.

    Returns:
      float32[H, T, T] for the T = side ** 2 positions: entry (i, j) is the row of table for position i minus
      position j, both counted from -(S - 1).
    """
    rows = round(len(table) ** 0.5)
    margin = (rows + 1) // 2 - side
    grid = table.reshape(rows, rows, -1)[margin : rows - margin, margin : rows - margin]
    # Two products with a selection: on TPUs the gradient of a gather, a scatter of T * T rows, is slow.
    positions = np.arange(side)
    offsets = positions[:, None] - positions + side - 1
    select = np.eye(2 * side - 1, dtype=np.float32)[offsets]
    pairs = jnp.einsum("ija,abh->ijbh", select, grid, precision="highest")
    pairs = jnp.einsum("klb,ijbh->hikjl", select, pairs, precision="highest")
    return pairs.reshape(-1, side**2, side**2)
