"""CLIP's residual networks (Radford et al. 2021, arXiv 2103.00020, section 2.4).

A ResNet with three changes: a stem of three convolutions (ResNet-D, He et al. 2019), an average
pool in place of every stride (Zhang 2019), and attention pooling at the end.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models import convolutions, input_channels, layer_stack
from big_ssl.models.attention import attention, of_encoder
from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.encoder import Encoder
from big_ssl.models.position_embedding import resize_position_embedding, resize_square_table

# Table 19 of the paper; image_size and pooled_dim are those of the whole model.
VARIANTS = {
    "50": dict(width=64, blocks=(3, 4, 6, 3), image_size=224, pooled_dim=1024),
    "101": dict(width=64, blocks=(3, 4, 23, 3), image_size=224, pooled_dim=512),
    "50x4": dict(width=80, blocks=(4, 6, 10, 6), image_size=288, pooled_dim=640),
    "50x16": dict(width=96, blocks=(6, 8, 18, 8), image_size=384, pooled_dim=768),
    "50x64": dict(width=128, blocks=(3, 15, 36, 10), image_size=448, pooled_dim=1024),
}

# The ratio of a block's output channels to its inner channels.
_EXPANSION = 4
# The ratio of the image's side to the last map's.
_STRIDE = 32

# PyTorch's default for convolutions: uniform, of variance 1 / (3 fan_in).
_conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Block(nn.Module):
    """Bottleneck: 1x1, 3x3, average pool by `stride`, 1x1, and the sum. x: [C, B, H, W]."""

    width: int
    stride: int
    norm: Callable[..., nn.Module]  # builds a batch norm, given its name

    @nn.compact
    def __call__(self, x, train: bool):
        out = _EXPANSION * self.width
        y = nn.relu(self.norm(name="conv1_bn")(self._pointwise("conv1", x, self.width), train))
        kernel = self.param("conv2", _conv_init, (3, 3, self.width, self.width))
        y = convolutions.full_conv(y, kernel.astype(y.dtype))
        y = average_pool(nn.relu(self.norm(name="conv2_bn")(y, train)), self.stride)
        # The branch starts at zero (Goyal et al. 2017), as in OpenAI's code.
        norm = self.norm(name="conv3_bn", scale_init=nn.initializers.zeros)
        y = norm(self._pointwise("conv3", y, out), train)
        if self.stride > 1 or len(x) != out:
            x = self._pointwise("shortcut", average_pool(x, self.stride), out)
            x = self.norm(name="shortcut_bn")(x, train)
        return nn.relu(x + y)

    def _pointwise(self, name, x, features):
        kernel = self.param(name, _conv_init, (len(x), features))
        return convolutions.pointwise_conv(x, kernel.astype(x.dtype))


def average_pool(x, size: int):
    """Means of size x size windows of x: [C, B, H, W]; a remainder is dropped."""
    rows, columns = (n // size for n in x.shape[2:])
    x = x[:, :, : rows * size, : columns * size]
    return x.reshape(*x.shape[:2], rows, size, columns, size).mean((3, 5))


class AttentionPool(nn.Module):
    """The map's mean attends to the mean and all positions. x: [C, B, H, W] -> [B, dim].

    side: of the position table's square grid, which is resized for a map of another size.
    """

    side: int
    heads: int
    dim: int
    attention: str = "auto"

    @nn.compact
    def __call__(self, x):
        channels, batch, *grid = x.shape
        x = x.reshape(channels, batch, -1).transpose(1, 2, 0)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        init = nn.initializers.normal(channels**-0.5)
        table = self.param("position_embedding", init, (1 + self.side**2, channels))
        x += resize_position_embedding(table, (self.side, self.side), tuple(grid)).astype(x.dtype)
        dense = functools.partial(nn.Dense, kernel_init=init, dtype=x.dtype)
        query, key, value = (
            dense(channels, name=name)(tokens).reshape(batch, -1, self.heads, channels // self.heads)
            for name, tokens in (("query", x[:, :1]), ("key", x), ("value", x))
        )
        y = attention(query, key, value, implementation=self.attention)
        return dense(self.dim, name="out")(y.reshape(batch, channels))


class ModifiedResNet(Encoder):
    """CLIP's ResNet; VARIANTS are the published ones.

    width: inner channels of the first stage's blocks; image_size: of the attention pool's position table, in
      pixels of a square image; for images of another size it is resized. channels: of the images.
    pooled_dim: of the embedding; attention pooling includes its projection.
    attention: its implementation in the pool, see models/attention.py.
    bn_group, bn_momentum: see models/batch_norm.py. scan: scans a stage's blocks except the first;
    remat: for all blocks; see models/layer_stack.py.

    images: float[B, H, W, C], normalised -> dict(
      pooled: float32[B, pooled_dim], patches: dtype[B, H // 32, W // 32, 32 * width],
      pyramid: the maps after each stage, a tuple of dtype[B, H // s, W // s, s * width], s = 4, 8, 16, 32).
    Raises ValueError for images of other channels, or smaller than 32 pixels.
    """

    width: int = 64
    blocks: Sequence[int] = (3, 4, 6, 3)
    image_size: int = 224
    channels: int = 3
    pooled_dim: int = 1024
    bn_group: int = 0
    bn_momentum: float = 0.9
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    # All of a stage's blocks but the first, which alone changes stride and width.
    stacks: ClassVar[Mapping[str, int]] = {r"stage\d+_block": 1}
    first_kernel = "stem0"

    @property
    def outputs(self) -> tuple[str, ...]:
        """All always."""
        return ("pooled", "patches", "pyramid")

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """Of each stage."""
        return tuple(4 * 2**i for i in range(len(self.blocks)))

    def resize_params(self, name, array, shape):
        """The attention pool's position table, whose first row is the mean's."""
        if name == "pooling/position_embedding":
            return resize_square_table(array, shape, 1)
        return super().resize_params(name, array, shape)

    @nn.compact
    def __call__(self, images, train: bool = False):
        input_channels.check_images("resnet", images.shape, self.channels, _STRIDE)
        norm = functools.partial(BatchNorm, self.bn_group, self.bn_momentum, 1e-5)
        x = self._stem(images.astype(self.dtype).transpose(3, 0, 1, 2), norm, train)
        pyramid = []
        for i, blocks in enumerate(self.blocks):
            x = self._stage(i, blocks, norm, x, train)
            pyramid.append(x.transpose(1, 2, 3, 0))
        pool = AttentionPool(
            self.image_size // _STRIDE,
            max(1, len(x) // 64),
            self.pooled_dim,
            of_encoder(self),
            name="pooling",
        )
        return dict(pooled=pool(x).astype(jnp.float32), patches=pyramid[-1], pyramid=tuple(pyramid))

    def _stem(self, x, norm, train):
        for i, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))):
            kernel = self.param(f"stem{i}", _conv_init, (3, 3, len(x), features))
            x = convolutions.full_conv(x, kernel.astype(x.dtype), stride)
            x = nn.relu(norm(name=f"stem{i}_bn")(x, train))
        return average_pool(x, 2)

    def _stage(self, i, blocks, norm, x, train):
        """Applies the first block, which alone has a stride and widens, then the others, which are equal."""
        width, prefix = self.width * 2**i, f"stage{i}_block"
        apply = functools.partial(layer_stack.apply_layers, remat=self.remat)
        first, other = (functools.partial(Block, width, stride, norm) for stride in (1 if i == 0 else 2, 1))

        def call(block, x, _):
            return block(x, train)

        x = apply(first, prefix, range(1), call, x, scan=False)
        return apply(other, prefix, range(1, blocks), call, x, scan=self.scan)
