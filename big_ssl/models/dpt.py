"""The decoder of dense prediction transformers (Ranftl et al. 2021, arXiv 2103.13413)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models.interpolation import resize_align_corners, resize_bilinear

# Reassembled maps of one patch grid have the strides 4, 8, 16 and 32 of a patch of 16 pixels.
FACTORS = (4, 2, 1, 0.5)


class DPT(nn.Module):
    """Fuses four maps, coarse to fine, to one map.

    channels: of the fused maps. hidden: the width of each reassembled map. readout: whether each map is
    projected together with its class token; False ignores the tokens. fusion_bias: whether the convolutions
    of residual units have a bias; DINOv2's have none.
    """

    channels: int = 256
    hidden: Sequence[int] = (96, 192, 384, 768)
    readout: bool = True
    fusion_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence, tokens: Sequence | None):
        """Fuses the maps.

        Args:
          maps: four, first layers first: float[B, h, w, D] of one grid, which are reassembled to maps of
            4, 2, 1 and 1/2 times its side; or float[B, h_i, w_i, D_i], each half as fine as the one before.
          tokens: float[B, D] of each map, with readout.

        Returns:
          dtype[B, H, W, channels], twice as fine as the first map; of one grid, 8 times as fine.
        """
        if len(maps) != len(FACTORS):
            raise ValueError(f"dpt: it fuses {len(FACTORS)} maps; there are {len(maps)}")
        if maps[0].shape == maps[-1].shape:
            tokens = tokens if self.readout else [None] * len(maps)
            maps = [self._reassemble(i, *pair) for i, pair in enumerate(zip(maps, tokens, strict=True))]
        maps = [
            nn.Conv(self.channels, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name=f"input{i}")(x)
            for i, x in enumerate(maps)
        ]
        fused = None
        for i in reversed(range(len(maps))):
            fused = Fusion(self.fusion_bias, self.dtype, name=f"fusion{i}")(fused, maps[i])
        return fused

    def _reassemble(self, i, x, token):
        width, factor = self.hidden[i], FACTORS[i]
        if token is not None:
            both = jnp.concatenate([x, jnp.broadcast_to(token[:, None, None], x.shape)], axis=-1)
            x = nn.gelu(nn.Dense(x.shape[-1], dtype=self.dtype, name=f"readout{i}")(both), approximate=False)
        x = nn.Dense(width, dtype=self.dtype, name=f"projection{i}")(x)
        if factor > 1:
            sides = (factor, factor)
            return nn.ConvTranspose(width, sides, sides, dtype=self.dtype, name=f"resize{i}")(x)
        if factor < 1:
            stride = int(1 / factor)
            resize = nn.Conv(width, (3, 3), (stride, stride), padding=1, dtype=self.dtype, name=f"resize{i}")
            return resize(x)
        return x


class Fusion(nn.Module):
    """Adds a finer map to what is fused so far, and doubles the size.

    bias: of the residual units' convolutions.
    """

    bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, fused, x):
        """Fuses one map.

        Args:
          fused: [B, h, w, C], None for the coarsest map.
          x: [B, h', w', C], resized to h x w if it has another size, as where a stride of 2 rounded up.

        Returns:
          [B, 2 h, 2 w, C].
        """
        if fused is not None:
            x = resize_bilinear(x, fused.shape[1:3])
            x = fused + self._residual("residual1", x)
        x = upsample(self._residual("residual2", x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="projection")(x)

    def _residual(self, name, x):
        """x + its two convolutions, each after a ReLU."""
        y = x
        for i in (1, 2):
            conv = nn.Conv(
                x.shape[-1],
                (3, 3),
                padding=1,
                use_bias=self.bias,
                dtype=self.dtype,
                name=f"{name}_conv{i}",
            )
            y = conv(nn.relu(y))
        return x + y


def upsample(x):
    """[B, h, w, C] -> [B, 2h, 2w, C], bilinear; the outermost pixels stay the outermost (align_corners)."""
    return resize_align_corners(x, [2 * side for side in x.shape[1:3]])
