"""Block-wise masks of patches, drawn on the device, with the same number of masked patches in every step."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Rectangles tried for one image; the published loop needs about ten.
_ATTEMPTS = 48
# After so many failures in a row the published loop gives up on an image.
_PATIENCE = 10
# A rectangle's height by its width lies between this and its inverse.
_ASPECT = 0.3


@dataclasses.dataclass(frozen=True)
class BlockMask:
    """Masks of a view of several crops (Bao et al. 2022, arXiv 2106.08254, algorithm 1; Zhou et al. 2022,
    arXiv 2111.07832, section 3.2).

    grid: patches along a side of a crop. mask_prob: the fraction of the crops that is masked at all; ratio:
    the range of the fraction of a masked crop's patches. min_patches: of a rectangle.
    mask_group: the total of masked patches is fixed within each group of this many examples, so that shapes
    are static: a fraction mask_prob of the group's crops is masked, with ratios evenly spaced over `ratio`
    and randomly assigned (DINOv2's published code does so for each device's batch). A group never leaves a
    device if the devices' parts of the batch are multiples of it.
    Rectangles are drawn as published; the few patches that are still missing from a crop's number are drawn
    one by one (as in DINOv3). Raises ValueError for invalid options.
    """

    grid: int
    mask_prob: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    min_patches: int = 4
    mask_group: int = 16

    def __post_init__(self):
        low, high = self.ratio
        if not 0 < low <= high < 1 or not 0 < self.mask_prob <= 1 or self.grid < 2:
            raise ValueError(
                f"mask: grid is {self.grid}, mask_prob {self.mask_prob} and ratio {self.ratio}; they must be "
                "at least 2, in (0, 1], and a rising pair within (0, 1)"
            )

    def counts(self, crops: int) -> np.ndarray:
        """int[crops]: how many patches are masked in each of a group's crops, before they are assigned."""
        masked = max(1, int(self.mask_prob * crops))
        edges = np.linspace(*self.ratio, masked + 1)
        counts = np.maximum(1, (self.grid**2 * (edges[:-1] + edges[1:]) / 2).astype(int))
        return np.pad(counts, (0, crops - masked))

    def __call__(self, key, examples: int, crops: int):
        """Draws a mask for each of [examples, crops] images of N = grid ** 2 patches.

        Returns mask: bool[examples, crops, N], True where a patch is masked; and for G groups with M
        masked patches each, indices: int32[G, M], their positions among a group's patches, laid out as
        [examples / G * crops * N], and weights: float32[G, M], 1 / (masked patches in the crop).
        Raises ValueError if mask_group does not divide the examples, unless it is larger.
        """
        size = min(self.mask_group, examples)
        if examples % size:
            raise ValueError(f"mask: mask_group {size} does not divide a batch of {examples}")
        counts = jnp.asarray(self.counts(size * crops))
        masks, assigned = jax.vmap(functools.partial(self._group, counts))(
            jax.random.split(key, examples // size)
        )
        flat = masks.reshape(len(masks), -1)
        indices = jax.vmap(lambda m: jnp.nonzero(m, size=int(self.counts(size * crops).sum()))[0])(flat)
        in_crop = jnp.take_along_axis(assigned, indices // self.grid**2, axis=1)
        return dict(
            mask=masks.reshape(examples, crops, -1), indices=indices, weights=1 / in_crop.astype(jnp.float32)
        )

    def _group(self, counts, key):
        """(masks: bool[crops, N], masked patches: int32[crops]) of one group."""
        assign, draw = jax.random.split(key)
        counts = jax.random.permutation(assign, counts)
        return jax.vmap(self._one)(jax.random.split(draw, len(counts)), counts), counts

    def _one(self, key, count):
        """bool[N], the mask of one crop with `count` masked patches."""
        rectangle_key, fill_key = jax.random.split(key)
        draws = jax.random.uniform(rectangle_key, (_ATTEMPTS, 4))
        empty = jnp.zeros((self.grid, self.grid), bool)
        (mask, _), _ = jax.lax.scan(functools.partial(self._attempt, count), (empty, 0), draws)
        # Patches in rectangles first, then the others in random order.
        order = jnp.where(mask.ravel(), -1.0, jax.random.uniform(fill_key, (self.grid**2,)))
        return jnp.argsort(jnp.argsort(order)) < count

    def _attempt(self, count, state, draw):
        """Adds one more rectangle, if it does not exceed `count`."""
        mask, failures = state
        left = count - mask.sum()
        area = self.min_patches + draw[0] * (left - self.min_patches)
        aspect = jnp.exp((2 * draw[1] - 1) * -math.log(_ASPECT))
        height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top = jnp.floor(draw[2] * (self.grid - height + 1))
        start = jnp.floor(draw[3] * (self.grid - width + 1))
        at = jnp.arange(self.grid)
        rows, columns = (at >= top) & (at < top + height), (at >= start) & (at < start + width)
        block = rows[:, None] & columns
        new = (block & ~mask).sum()
        fits = (height < self.grid) & (width < self.grid) & (new > 0) & (new <= left)
        fits &= failures < _PATIENCE
        return (jnp.where(fits, mask | block, mask), jnp.where(fits, 0, failures + 1)), None
