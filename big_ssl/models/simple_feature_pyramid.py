"""The simple feature pyramid of ViTDet (Li et al. 2022, arXiv 2203.16527, section 3): maps of several strides
from the last map of a plain ViT.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models.interpolation import resize_bilinear

_EPSILON = 1e-6  # of layer norms, as in a ViT


class TransposedConvolution(nn.Module):
    """A transposed convolution whose kernel is as large as its stride, 2: x: [B, h, w, D] -> [B, 2h, 2w, F].

    No two outputs overlap, so it is one matrix product, of each position with the kernel [D, 2, 2, F].
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2, 3))
        kernel = self.param("kernel", init, (channels, 2, 2, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = jnp.einsum("bhwd,dpqf->bhpwqf", x.astype(self.dtype), kernel.astype(self.dtype))
        return x.reshape(batch, 2 * height, 2 * width, self.features) + bias.astype(self.dtype)


class SimpleFeaturePyramid(nn.Module):
    """Maps of finer strides by transposed convolutions, with a layer norm and GELU between two of them, which
    halve the channels; of coarser strides by max pooling; then 1x1 and 3x3 convolutions, each with a layer
    norm.

    channels: of all outputs. strides: of the outputs, powers of two apart. A map whose stride is none of
    these times a power of two, such as 14, is first resized to the next such stride, bilinearly.
    """

    channels: int = 256
    strides: Sequence[int] = (4, 8, 16, 32)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps, strides: Sequence[float]):
        """The outputs of an encoder's only map.

        Args:
          maps: a tuple of one [B, H, W, D].
          strides: of the map.

        Returns:
          A tuple of dtype[B, h, w, channels], one for each of self.strides.

        Raises:
          ValueError: for several maps, and for output strides that are not powers of two apart.
        """
        if len(maps) != 1:
            raise ValueError(
                f"simple_feature_pyramid: the encoder has maps of the strides {tuple(strides)}; it takes "
                "one, and neck.kind fpn takes several"
            )
        doublings = [math.log2(stride / self.strides[0]) for stride in self.strides]
        if any(x != round(x) for x in doublings):
            raise ValueError(
                f"simple_feature_pyramid: strides are {tuple(self.strides)}; they must be powers of two apart"
            )
        start = round(math.log2(strides[0] / self.strides[0]))
        scale = strides[0] / (self.strides[0] * 2**start)
        x = resize_bilinear(maps[0], [max(1, round(side * scale)) for side in maps[0].shape[1:3]])
        return tuple(
            self._output(i, self._scaled(i, x.astype(self.dtype), start - round(doubling)))
            for i, doubling in enumerate(doublings)
        )

    def _scaled(self, i, x, doublings):
        """x: [B, h, w, D], with its sides doubled so many times, or halved if that is negative."""
        if doublings < 0:
            size = 2**-doublings
            # Sides are rounded up, as by convolutions of stride 2: Dynamic Head requires it.
            margins = [(0, -side % size) for side in x.shape[1:3]]
            return nn.max_pool(x, (size, size), (size, size), margins)
        for j in range(doublings):
            if j:
                x = nn.gelu(self._norm(f"level{i}_norm{j - 1}")(x), approximate=False)
            x = TransposedConvolution(x.shape[-1] // 2, self.dtype, name=f"level{i}_up{j}")(x)
        return x

    def _output(self, i, x):
        for size in (1, 3):
            conv = nn.Conv(
                self.channels,
                (size, size),
                padding=size // 2,
                use_bias=False,
                dtype=self.dtype,
                name=f"level{i}_conv{size}",
            )
            x = self._norm(f"level{i}_conv{size}_norm")(conv(x))
        return x

    def _norm(self, name):
        return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name=name)
