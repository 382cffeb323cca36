"""Modulated deformable convolution, DCNv2 (Zhu et al. 2019, arXiv 1811.11168, equation 1).

Each tap of a k x k kernel reads the map at a position of its own, between pixels by bilinear interpolation,
with zeros around the map, and is scaled by a mask.

Three implementations give the same sums. `gather` reads the four neighbours of each tap as one row: a TPU
reads rows one by one, and its gradient is a scatter. `one_hot` writes the interpolation as a matrix
[taps, H * W] and multiplies by it, which costs H * W products a tap: for small maps. `tiles` does so for each
tile of the map and a window around it, and falls back to `gather` if a tap leaves its window: taps may move
by up to 7 pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The sides of a tile and of the margin of its window, in pixels of the map.
TILE, HALO = 8, 8
# Up to so many pixels `one_hot` is no slower on TPU than `tiles`, whose windows have 24 * 24 pixels
# (benchmarks/deformable_convolution.py).
_SMALL_MAP = 1200


def deformable_conv(x, offsets, mask, kernel, bias=None, stride: int = 1, implementation: str = "auto"):
    """Modulated deformable convolution with k // 2 zeros around the map.

    Args:
      x: float[B, H, W, C].
      offsets: float[B, H', W', 2 * k * k], each tap's (dy, dx) in pixels of x, taps in row-major order; H' is
        H / stride, rounded up. Offsets may lead outside the map, however far.
      mask: float[B, H', W', k * k].
      kernel: float[k, k, C, D], k odd.
      bias: float[D], or None.
      stride: of the undeformed grid, which divides TILE.
      implementation: "gather", "one_hot" or "tiles"; "auto" takes, on TPU, one_hot for small maps and tiles
        for others, and elsewhere gather.

    Returns:
      [B, H', W', D], in x's dtype. Positions and interpolation weights are computed in float32.

    Raises:
      ValueError: for offsets or a mask of another shape, an even kernel or an unknown implementation.
    """
    if implementation not in ("auto", *IMPLEMENTATIONS):
        names = ", ".join(("auto", *IMPLEMENTATIONS))
        raise ValueError(f"deformable_conv: implementation is {implementation!r}; there are {names}")
    _check_shapes(x, offsets, mask, kernel, stride)
    y = _conv(x, offsets.astype(jnp.float32), mask.astype(jnp.float32), kernel, stride, implementation)
    return y if bias is None else y + bias.astype(y.dtype)


def _check_shapes(x, offsets, mask, kernel, stride):
    k = kernel.shape[0]
    if k % 2 == 0 or kernel.shape[1] != k or TILE % stride:
        raise ValueError(
            f"deformable_conv: kernel {kernel.shape[:2]}, stride {stride}; use an odd square kernel, and a "
            f"stride that divides {TILE}"
        )
    positions = (x.shape[0], -(-x.shape[1] // stride), -(-x.shape[2] // stride))
    for name, array, channels in (("offsets", offsets, 2 * k * k), ("mask", mask, k * k)):
        expected = (*positions, channels)
        if array.shape != expected:
            raise ValueError(f"deformable_conv: {name} have the shape {array.shape}; it must be {expected}")


# The backward pass computes the samples again: stored, they would be k * k times the map.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _conv(x, offsets, mask, kernel, stride, implementation):
    return _choose(x, stride, implementation, _forward)(x, offsets, mask, kernel)


def _conv_fwd(x, offsets, mask, kernel, stride, implementation):
    return _conv(x, offsets, mask, kernel, stride, implementation), (x, offsets, mask, kernel)


def _conv_bwd(stride, implementation, residuals, grad):
    return _choose(residuals[0], stride, implementation, _backward)(*residuals, grad)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _choose(x, stride, implementation, direction):
    """The function of an implementation; direction: _forward or _backward, of one way to convolve."""
    if implementation == "auto":
        small = x.shape[1] * x.shape[2] <= _SMALL_MAP
        names = ("one_hot" if small else "tiles", "gather")
        tpu, default = (_choose(x, stride, name, direction) for name in names)
        return functools.partial(lax.platform_dependent, tpu=tpu, default=default)
    if implementation != "tiles":
        return direction(IMPLEMENTATIONS[implementation], stride)

    def run(x, offsets, *arrays):
        inside = _within_windows(_positions(x, offsets, stride), x.shape, stride)
        tiles, gather = (direction(IMPLEMENTATIONS[name], stride) for name in ("tiles", "gather"))
        # The planner leaves out a branch of this name.
        return lax.cond(inside, tiles, jax.named_scope("fallback")(gather), x, offsets, *arrays)

    return run


def _forward(convolve, stride):
    def run(x, offsets, mask, kernel):
        kernel = kernel.reshape(-1, *kernel.shape[2:]).astype(x.dtype)
        return convolve(x, _positions(x, offsets, stride), mask, kernel, stride)

    return run


def _backward(convolve, stride):
    def run(x, offsets, mask, kernel, grad):
        return jax.vjp(_forward(convolve, stride), x, offsets, mask, kernel)[1](grad)

    return run


def _positions(x, offsets, stride):
    """(y, x), each float32[B, H', W', k * k]: where the taps read, in pixels of the map.

    Positions far outside, where nothing is read and no gradient flows, are moved to 2 pixels from the map.
    """
    taps = offsets.shape[-1] // 2
    k = round(taps**0.5)
    offsets = offsets.reshape(*offsets.shape[:-1], taps, 2)
    grid = [np.arange(n, dtype=np.float32) * stride for n in offsets.shape[1:3]]
    ky, kx = (np.mgrid[:k, :k].reshape(2, -1) - k // 2).astype(np.float32)
    y = offsets[..., 0] + (grid[0][:, None, None] + ky)
    x_ = offsets[..., 1] + (grid[1][:, None] + kx)
    return jnp.clip(y, -2, x.shape[1] + 1), jnp.clip(x_, -2, x.shape[2] + 1)


def convolve_by_gather(x, positions, mask, kernel, stride):
    """Each tap reads one row of a table that holds four neighbours' channels.

    Args:
      x: float[B, H, W, C].
      positions: (y, x), each float32[B, H', W', K], see _positions.
      mask: float32[B, H', W', K].
      kernel: float[K, C, D].
      stride: unused here.

    Returns:
      float[B, H', W', D].
    """
    del stride
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (2, 3), (2, 3), (0, 0)))
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    shifted = [padded[:, i : i + height + 4, j : j + width + 4] for i, j in corners]
    table = jnp.concatenate(shifted, -1).reshape(batch, -1, 4 * channels)
    (y, fy), (x_, fx) = (_split(p) for p in positions)
    rows = ((y + 2) * (width + 4) + x_ + 2).astype(jnp.int32).reshape(batch, -1)
    read = jnp.take_along_axis(table, rows[..., None], axis=1)
    weights = [(fy if i else 1 - fy) * (fx if j else 1 - fx) for i, j in corners]
    weights = (jnp.stack(weights, -1) * mask[..., None]).astype(x.dtype)
    samples = jnp.einsum("...nc,...n->...c", read.reshape(*mask.shape, 4, channels), weights)
    return jnp.einsum("bhwkc,kcd->bhwd", samples, kernel)


def convolve_by_one_hot(x, positions, mask, kernel, stride):
    """As convolve_by_gather, as a product with a matrix of interpolation weights, [H' * W' * K, H * W]."""
    del stride
    batch, height, width, channels = x.shape
    y, x_, mask_ = (p.reshape(batch, -1) for p in (*positions, mask))
    weights = _weights(y, x_, mask_, np.mgrid[:height, :width].reshape(2, -1)).astype(x.dtype)
    samples = jnp.einsum("bpj,bjc->bpc", weights, x.reshape(batch, -1, channels))
    return jnp.einsum("bhwkc,kcd->bhwd", samples.reshape(*mask.shape, channels), kernel)


def convolve_by_tiles(x, positions, mask, kernel, stride):
    """As convolve_by_one_hot for each tile and its window, where no tap leaves it; see _within_windows."""
    (batch, height, width, _), out = x.shape, TILE // stride
    rows, columns = -(-height // TILE), -(-width // TILE)
    windows, pixels = _windows(x, rows, columns)
    y, x_ = (_tiled(p, rows, columns, out, -2.0) for p in positions)
    mask = _tiled(mask, rows, columns, out, 0.0)
    corner = (np.mgrid[:rows, :columns] * TILE - HALO).reshape(2, -1)
    corner = np.tile(corner, batch)[..., None, None].astype(np.float32)
    weights = _weights(y - corner[0], x_ - corner[1], mask, pixels).astype(x.dtype)
    samples = jnp.einsum("tpkj,tjc->tpkc", weights, windows)
    tiles = jnp.einsum("tpkc,kcd->tpd", samples, kernel)
    tiles = tiles.reshape(batch, rows, columns, out, out, -1).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, rows * out, columns * out, -1)[
        :, : -(-height // stride), : -(-width // stride)
    ]


IMPLEMENTATIONS = dict(gather=convolve_by_gather, one_hot=convolve_by_one_hot, tiles=convolve_by_tiles)


def _split(position):
    """(the pixel before, the fraction of the way to the next one); the gradient goes to the fraction."""
    before = lax.stop_gradient(jnp.floor(position))
    return before, position - before


def _weights(y, x, mask, pixels):
    """float32[..., N, P]: the weights of P pixels in the interpolation at (y, x), times the mask.

    y, x, mask: float32[..., N]; pixels: int[2, P], their (y, x).
    """
    return _hat(y, pixels[0], mask) * _hat(x, pixels[1], 1.0)


def _hat(position, pixels, scale):
    """float32[..., N, P]: scale at the position, 0 from a pixel away. Its slope on a pixel is that to the
    right, as in torchvision."""
    before, fraction = _split(position)
    here, there = ((part * scale)[..., None] for part in (1 - fraction, fraction))
    before, pixels = before[..., None], pixels.astype(np.float32)
    return jnp.where(pixels == before, here, jnp.where(pixels == before + 1, there, 0))


def _windows(x, rows, columns):
    """The window around each tile, and its pixels' places in it.

    Returns:
      float[B * rows * columns, P, C] and int[2, P], the (y, x) of the P pixels, which are in the order of the
      tiles that a window consists of: each is copied once.
    """
    batch, height, width, channels = x.shape
    after = (rows * TILE - height + HALO, columns * TILE - width + HALO)
    x = jnp.pad(x, ((0, 0), (HALO, after[0]), (HALO, after[1]), (0, 0)))
    blocks = x.reshape(batch, -1, HALO, x.shape[2] // HALO, HALO, channels).transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(*blocks.shape[:3], HALO * HALO, channels)
    step, count = TILE // HALO, TILE // HALO + 2
    parts, places = [], []
    for i, j in np.ndindex(count, count):
        stop_i, stop_j = i + (rows - 1) * step + 1, j + (columns - 1) * step + 1
        parts.append(blocks[:, i:stop_i:step, j:stop_j:step])
        places.append(np.mgrid[:HALO, :HALO].reshape(2, -1) + np.array([[i], [j]]) * HALO)
    windows = jnp.concatenate(parts, 3)
    return windows.reshape(-1, *windows.shape[3:]), np.concatenate(places, 1)


def _tiled(x, rows, columns, out, fill):
    """[B, H', W', K] -> [B * rows * columns, out * out, K], padded with fill."""
    padding = ((0, 0), (0, rows * out - x.shape[1]), (0, columns * out - x.shape[2]), (0, 0))
    x = jnp.pad(x, padding, constant_values=fill).reshape(x.shape[0], rows, out, columns, out, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, out * out, x.shape[-1])


def _within_windows(positions, shape, stride):
    """bool[]: whether both neighbours of every tap that reads the map lie in the window of its tile."""
    inside, reads = True, True
    for position, axis in zip(positions, (1, 2), strict=True):
        n, out = position.shape[axis], TILE // stride
        first = np.expand_dims(np.arange(n) // out * TILE - HALO, (1, 2) if axis == 1 else 1)
        local = jnp.floor(position) - first
        inside &= (local >= 0) & (local + 1 < TILE + 2 * HALO)
        reads &= (position > -1) & (position < shape[axis])
    return (inside | ~reads).all()
