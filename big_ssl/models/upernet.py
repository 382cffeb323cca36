"""UPerNet's head (Xiao et al. 2018, arXiv 1807.10221, section 3.1): pyramid pooling of the coarsest map
(Zhao et al. 2017, arXiv 1612.01105) and a feature pyramid, fused at the finest map's size.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.interpolation import resize_bilinear

# Kaiming's, as its published code begins.
_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def adaptive_pool(x, side: int):
    """[B, h, w, D] -> [B, side, side, D]: means over windows that cover the map and may overlap, as PyTorch's
    adaptive average pooling; a product with a matrix for each axis."""
    rows, columns = (jnp.asarray(_windows(length, side), x.dtype) for length in x.shape[1:3])
    return jnp.einsum("rh,bhwd,cw->brcd", rows, x, columns)


def _windows(length, count):
    """float32[count, length]: the weights of the means."""
    weights = np.zeros((count, length), np.float32)
    for i in range(count):
        start, stop = i * length // count, -(-(i + 1) * length // count)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


class ConvBlock(nn.Module):
    """A convolution without bias, a batch norm, a ReLU. x: [B, h, w, D] -> [B, h, w, features].

    norm: builds a batch norm, given its name.
    """

    features: int
    size: int
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        conv = nn.Conv(
            self.features,
            (self.size, self.size),
            padding=self.size // 2,
            use_bias=False,
            kernel_init=_INIT,
            dtype=self.dtype,
            name="conv",
        )
        x = self.norm(name="norm")(conv(x).transpose(3, 0, 1, 2), train)
        return nn.relu(x).transpose(1, 2, 3, 0)


class UPerNet(nn.Module):
    """The head, without a classifier.

    channels: of all its convolutions. pool_sides: of the pooled maps. bn_group, bn_momentum: see
    models.batch_norm.

    __call__(maps: a tuple of [B, H_i, W_i, D_i], from fine to coarse, train) -> dtype[B, H_0, W_0, channels].
    """

    channels: int = 512
    pool_sides: Sequence[int] = (1, 2, 3, 6)
    bn_group: int = 0
    bn_momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool = False):
        norm = functools.partial(BatchNorm, self.bn_group, self.bn_momentum, 1e-5)

        def block(name, size, x):
            return ConvBlock(self.channels, size, norm, self.dtype, name=name)(x, train)

        *finer, coarsest = (x.astype(self.dtype) for x in maps)
        pooled = [block(f"pool{side}", 1, adaptive_pool(coarsest, side)) for side in self.pool_sides]
        pooled = [coarsest, *(resize_bilinear(x, coarsest.shape[1:3]) for x in pooled)]
        laterals = [block(f"lateral{i}", 1, x) for i, x in enumerate(finer)]
        laterals.append(block("bottleneck", 3, jnp.concatenate(pooled, -1)))
        for i in reversed(range(len(finer))):
            laterals[i] = laterals[i] + resize_bilinear(laterals[i + 1], laterals[i].shape[1:3])
        outputs = [block(f"output{i}", 3, x) for i, x in enumerate(laterals[:-1])] + laterals[-1:]
        outputs = [resize_bilinear(x, outputs[0].shape[1:3]) for x in outputs]
        return block("fusion", 3, jnp.concatenate(outputs, -1))
