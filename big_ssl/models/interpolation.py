"""Bilinear interpolation of maps, [..., h, w, C], as PyTorch's interpolate does it, without antialiasing."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def resize_bilinear(x, sides: Sequence[int]):
    """Interpolates between the centres of pixels: float[..., h, w, C] -> [..., *sides, C]."""
    return jax.image.resize(x, (*x.shape[:-3], *sides, x.shape[-1]), "linear", antialias=False)


def resize_align_corners(x, sides: Sequence[int], precision=None):
    """Bilinear interpolation in which the outermost pixels stay the outermost.

    Args:
      x: float[..., h, w, C].
      sides: (H, W).
      precision: of the products, as in jax.numpy.einsum.

    Returns:
      [..., H, W, C], in x's dtype.
    """
    pairs = zip(x.shape[-3:-1], sides, strict=True)
    rows, columns = (_linear_weights(old, new).astype(x.dtype) for old, new in pairs)
    return jnp.einsum("ia,jb,...abd->...ijd", rows, columns, x, precision=precision)


def _linear_weights(old, new):
    """float32[new, old]: interpolates between neighbours; both ends stay at the ends."""
    positions = np.linspace(0, old - 1, new)
    weights = [np.interp(positions, np.arange(old), row) for row in np.eye(old)]
    return np.stack(weights, axis=1).astype(np.float32)
