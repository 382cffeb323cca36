"""Feature pyramid networks (Lin et al. 2017, arXiv 1612.03144), with the two coarser levels of RetinaNet (Lin
et al. 2017, arXiv 1708.02002, footnote 2), which ATSS and Dynamic Head make of the pyramid's last map.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

# He et al.'s uniform initialisation with a = 1, as detectron2 and torchvision start these convolutions.
_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FeaturePyramid(nn.Module):
    """P3 to P7 of an encoder's maps.

    Maps of these strides get a 1x1 convolution; from coarse to fine, each is added to the next after nearest
    upsampling; a 3x3 convolution makes the outputs. Coarser strides, which the encoder has no map of, are 3x3
    convolutions of stride 2 of the output before them, with a ReLU between two of these.

    channels: of all outputs. strides: of the outputs, each twice the one before. map_norm: whether each of
    the encoder's maps first gets a layer norm, see norm_maps.
    """

    channels: int = 256
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    map_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps, strides: Sequence[int]):
        """The outputs of an encoder's maps.

        Args:
          maps: a tuple of [B, H_i, W_i, D_i].
          strides: of the maps.

        Returns:
          A tuple of dtype[B, h, w, channels], one for each of self.strides.

        Raises:
          ValueError: if none of the maps has the first stride.
        """
        by_stride = dict(zip(strides, maps, strict=True))
        present = [stride for stride in self.strides if stride in by_stride]
        if not present or tuple(present) != tuple(self.strides[: len(present)]):
            raise ValueError(
                f"fpn: strides is {tuple(self.strides)}; the encoder's maps have the strides {tuple(strides)}"
            )
        chosen = [by_stride[stride] for stride in present]
        if self.map_norm:
            chosen = norm_maps(chosen, self.dtype)
        laterals = [self._conv(f"lateral{i}", 1)(x) for i, x in enumerate(chosen)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + upsample_nearest(laterals[i + 1], laterals[i].shape[1:3])
        outputs = [self._conv(f"output{i}", 3)(x) for i, x in enumerate(laterals)]
        for i in range(len(present), len(self.strides)):
            x = outputs[-1] if i == len(present) else nn.relu(outputs[-1])
            outputs.append(self._conv(f"output{i}", 3, stride=2)(x))
        return tuple(outputs)

    def _conv(self, name, size, stride=1):
        margin = size // 2
        return nn.Conv(
            self.channels,
            (size, size),
            (stride, stride),
            [(margin, margin)] * 2,
            kernel_init=_INIT,
            dtype=self.dtype,
            name=name,
        )


def norm_maps(maps: Sequence, dtype) -> list:
    """A layer norm on each map, "map_norm0", "map_norm1", ..., for the body of a compact module.

    Swin's maps are sums of residual branches: its code for dense tasks, and GLIP's for CoSwin, normalise
    them.
    """
    return [nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=f"map_norm{i}")(x) for i, x in enumerate(maps)]


def upsample_nearest(x, shape: Sequence[int]):
    """[B, h, w, D] -> [B, *shape, D]: output pixel i is input pixel floor(i * h / H), also at odd sizes."""
    for axis, size in zip((1, 2), shape, strict=True):
        if x.shape[axis] == -(-size // 2):  # the same, without a gather, which TPUs are slow at
            x = lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, size, axis=axis)
        else:
            x = jnp.take(x, jnp.arange(size) * x.shape[axis] // size, axis=axis)
    return x
