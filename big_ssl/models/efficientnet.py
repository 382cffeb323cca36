"""EfficientNet (Tan and Le 2019, arXiv 1905.11946), B0 to B7 and L2 (Xie et al. 2020)."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.models import convolutions, input_channels, layer_stack
from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.encoder import Encoder


class Stage(NamedTuple):
    """One row of Table 1 of the paper, before scaling."""

    kernel: int
    channels: int
    repeats: int
    stride: int
    expand: int


B0_STAGES = (
    Stage(3, 16, 1, 1, 1),
    Stage(3, 24, 2, 2, 6),
    Stage(5, 40, 2, 2, 6),
    Stage(3, 80, 3, 2, 6),
    Stage(5, 112, 3, 1, 6),
    Stage(5, 192, 4, 2, 6),
    Stage(3, 320, 1, 1, 6),
)

# (width, depth) multipliers of each published size.
VARIANTS = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "l2": (4.3, 5.3),
}


def round_channels(channels: float, width: float, divisor: int = 8) -> int:
    """Scales a channel count and rounds to a multiple of divisor, never down by over 10%."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Scales a stage's number of blocks, rounded up."""
    return math.ceil(depth * repeats)


# Normal with variance 2 / fan_out, as in the published code; a depthwise kernel [k, k, C]
# has fan-out k * k.
_dense_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _depthwise_init(key, shape):
    return jax.random.normal(key, shape) * math.sqrt(2 / (shape[0] * shape[1]))


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled map (Hu et al. 2018). x: [C, B, H, W], same shape out."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        channels = x.shape[0]
        pooled = x.mean((2, 3)).T  # [B, C]
        gate = nn.silu(nn.Dense(self.hidden, kernel_init=_dense_init, dtype=x.dtype, name="reduce")(pooled))
        gate = nn.Dense(channels, kernel_init=_dense_init, dtype=x.dtype, name="expand")(gate)
        return x * nn.sigmoid(gate).T[:, :, None, None]


class MBConv(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise k x k, squeeze-excite, project 1x1.

    The squeeze width is a quarter of the block's *input* channels. drop_rate: the probability, a
    number or float32[], that an example skips the residual branch in training
    (drop-connect); None disables it, and needs no key.
    """

    stage: Stage
    norm: Callable[..., nn.Module]  # builds a batch norm, given its name
    padding: str = "same"

    @nn.compact
    def __call__(self, x, drop_rate, train: bool):
        channels, stage, inputs = x.shape[0], self.stage, x
        hidden = channels * stage.expand
        if stage.expand > 1:
            kernel = self.param("expand", _dense_init, (channels, hidden))
            x = convolutions.pointwise_conv(x, kernel.astype(x.dtype))
            x = nn.silu(self.norm(name="expand_bn")(x, train))
        kernel = self.param("depthwise", _depthwise_init, (stage.kernel, stage.kernel, hidden))
        padding = convolutions.spatial_padding(x, stage.kernel, stage.stride, self.padding)
        x = convolutions.depthwise_conv(x, kernel.astype(x.dtype), stage.stride, padding)
        x = nn.silu(self.norm(name="depthwise_bn")(x, train))
        x = SqueezeExcite(max(1, channels // 4), name="squeeze_excite")(x)
        kernel = self.param("project", _dense_init, (hidden, stage.channels))
        x = convolutions.pointwise_conv(x, kernel.astype(x.dtype))
        x = self.norm(name="project_bn")(x, train)
        if stage.stride > 1 or x.shape != inputs.shape:
            return x
        return inputs + (x if drop_rate is None or not train else self._drop_connect(x, drop_rate))

    def _drop_connect(self, x, drop_rate):
        keep = 1 - drop_rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, (1, x.shape[1], 1, 1))
        return x * (mask / keep).astype(x.dtype)


class EfficientNet(Encoder):
    """The network up to the last block's output and its spatial mean, without the top 1x1
    convolution: ALIGN pools the block output itself (arXiv 2102.05918 section 4.1).

    width, depth: compound-scaling multipliers (see VARIANTS). channels: of the images.
    padding: "same", which maps 289 pixels to 10 x 10, or "fixed", as for COYO's published ALIGN, which maps
      them to 9 x 9; see models/convolutions.py.
    drop_connect: rate at the last block; block i of n has drop_connect * i / n.
    bn_group: see models/batch_norm.py; 0 is the global batch.
    scan: scans a stage's blocks except the first; remat: for all blocks; see models/layer_stack.py.

    images: float[B, H, W, C], normalised -> dict(
      pooled: float32[B, C], patches: dtype[B, H', W', C], C = round_channels(320, width),
      pyramid: the last map of each of pyramid_strides, a tuple of dtype[B, H_i, W_i, C_i]).
    """

    width: float = 1.0
    depth: float = 1.0
    stages: tuple[Stage, ...] = B0_STAGES
    stem_stride: int = 2
    channels: int = 3
    padding: str = "same"
    drop_connect: float = 0.2
    bn_group: int = 0
    bn_momentum: float = 0.99
    scan: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    # All of a stage's blocks but the first, which alone changes stride and width.
    stacks: ClassVar[Mapping[str, int]] = {r"stage\d+_block": 1}
    first_kernel = "stem"

    @property
    def outputs(self) -> tuple[str, ...]:
        """All always."""
        return ("pooled", "patches", "pyramid")

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """4, 8, 16 and 32 with the published stages."""
        return tuple(self._pyramid_stages())

    def _pyramid_stages(self):
        """{stride: index of the last stage that has it}, for strides from 4 on, and for the last one."""
        strides = list(itertools.accumulate((stage[3] for stage in self.stages), operator.mul))
        strides = [self.stem_stride * stride for stride in strides]
        return {stride: i for i, stride in enumerate(strides) if stride >= min(4, strides[-1])}

    @nn.compact
    def __call__(self, images, train: bool = False):
        input_channels.check_images("efficientnet", images.shape, self.channels, 1)
        norm = functools.partial(BatchNorm, self.bn_group, self.bn_momentum)
        x = images.astype(self.dtype).transpose(3, 0, 1, 2)
        kernel = self.param("stem", _dense_init, (3, 3, self.channels, round_channels(32, self.width)))
        padding = convolutions.spatial_padding(x, 3, self.stem_stride, self.padding)
        x = convolutions.conv(x, kernel.astype(self.dtype), self.stem_stride, padding)
        x = nn.silu(norm(name="stem_bn")(x, train))
        maps = []
        for i, stage, rates in self._scaled_stages():
            x = self._apply_stage(f"stage{i}_block", stage, rates, norm, x, train)
            maps.append(x)
        if 0 in x.shape[2:]:
            height, width = images.shape[1:3]
            raise ValueError(
                f"efficientnet: nothing is left of {height} x {width} pixels; take larger images"
            )
        pyramid = tuple(maps[i].transpose(1, 2, 3, 0) for i in self._pyramid_stages().values())
        return dict(pooled=x.astype(jnp.float32).mean((2, 3)).T, patches=pyramid[-1], pyramid=pyramid)

    def _apply_stage(self, prefix, stage, rates, norm, x, train):
        """Applies the first block of a stage, which alone has a stride, then the others, which are equal."""
        apply = functools.partial(layer_stack.apply_layers, remat=self.remat)
        first, other = (
            functools.partial(MBConv, s, norm, self.padding) for s in (stage, stage._replace(stride=1))
        )

        def call(block, x, rate):
            return block(x, rate, train)

        x = apply(first, prefix, range(1), call, x, rates[:1], scan=False)
        return apply(other, prefix, range(1, len(rates)), call, x, rates[1:], scan=self.scan)

    def _scaled_stages(self):
        """Yields (index, stage, drop rate of each of its blocks), widths and depths scaled."""
        stages = [Stage(*stage) for stage in self.stages]
        repeats = [round_repeats(stage.repeats, self.depth) for stage in stages]
        rates = [self.drop_connect * i / sum(repeats) for i in range(sum(repeats))]
        for i, stage in enumerate(stages):
            start = sum(repeats[:i])
            of_stage = rates[start : start + repeats[i]] if self.drop_connect else [None] * repeats[i]
            yield i, stage._replace(channels=round_channels(stage.channels, self.width)), of_stage
