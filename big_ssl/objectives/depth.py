"""Depth of every pixel, by a linear head or DPT on frozen or trained features.

The protocol is DINOv2's (Oquab et al. 2023, arXiv 2304.07193, section 7.4 and appendix B; its code's
configs for NYUv2).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.losses import depth as losses
from big_ssl.models.dpt import DPT, upsample
from big_ssl.objectives.base import (
    BatchField,
    Context,
    EncoderCall,
    Inputs,
    Provided,
    StatelessObjective,
    Sum,
)

# PyTorch's default of linear and convolutional layers, as in DINOv2's code.
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Added to every bin before they are normalised (AdaBins, arXiv 2011.14141; DINOv2's code).
_SHIFT = 0.1


class DepthHead(nn.Module):
    """The base of heads: called with {"image": encoder outputs}; returns depth: float32[B, h, w], or
    [B, n, h, w] for n crops, as coarse as the head's last map.

    readout: the encoder's output, such as "cls", that is read beside its maps; "" for none. bins: the depth
    is the expectation over so many uniform bins from min_depth to max_depth, with probabilities
    (relu(x) + 0.1) / sum; 0 for relu(x) + min_depth of one output, clipped to max_depth in evaluation.
    """

    readout: str = "cls"
    bins: int = 256
    min_depth: float = 1e-3
    max_depth: float = 10.0
    dtype: jnp.dtype = jnp.float32

    def outputs_to_depth(self, x, train):
        """float[..., max(bins, 1)] -> float32[...]."""
        x = nn.relu(x.astype(jnp.float32))
        if not self.bins:
            depth = x[..., 0] + self.min_depth
            return depth if train else jnp.minimum(depth, self.max_depth)
        weights, bins = x + _SHIFT, jnp.linspace(self.min_depth, self.max_depth, self.bins)
        return (weights * bins).sum(-1) / weights.sum(-1)


class LinearDepth(DepthHead):
    """A linear layer on concatenated maps and readouts, upsampled bilinearly.

    upsample: the factor. Published heads upsample the features before the layer; both are linear, and
    exchanged here they cost less.
    """

    upsample: int = 4

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        maps, tokens = features(inputs["image"], self.readout)
        x = jnp.concatenate([resized(y, maps[0].shape[-3:-1]) for y in maps], -1)
        x = jnp.concatenate([x, *(_spread(token, x) for token in tokens)], -1)
        x = nn.Dense(max(self.bins, 1), kernel_init=_INIT, dtype=self.dtype, name="linear")(x)
        x = resized(x.astype(jnp.float32), [self.upsample * side for side in x.shape[-3:-1]])
        return dict(depth=self.outputs_to_depth(x, train))


class DPTDepth(DepthHead):
    """models.dpt.DPT on four maps, then convolutions to twice its size, as in DINOv2's code.

    channels, hidden: see DPT.
    """

    channels: int = 256
    hidden: Sequence[int] = (96, 192, 384, 768)

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        maps, tokens = features(inputs["image"], self.readout)
        crops = maps[0].shape[:-3]
        maps = [x.reshape(-1, *x.shape[-3:]) for x in maps]
        tokens = [x.reshape(-1, x.shape[-1]) for x in tokens]
        decoder = DPT(self.channels, self.hidden, bool(self.readout), dtype=self.dtype, name="decoder")
        x = nn.relu(self._conv("project", self.channels)(decoder(maps, tokens or None)))
        x = upsample(self._conv("output0", self.channels // 2)(x))
        x = nn.relu(self._conv("output1", 32)(x))
        x = nn.Dense(max(self.bins, 1), kernel_init=_INIT, dtype=self.dtype, name="output2")(x)
        depth = self.outputs_to_depth(x, train)
        return dict(depth=depth.reshape(*crops, *depth.shape[1:]))

    def _conv(self, name, width):
        return nn.Conv(width, (3, 3), padding=1, kernel_init=_INIT, dtype=self.dtype, name=name)


HEADS: dict[str, type[DepthHead]] = {"linear": LinearDepth, "dpt": DPTDepth}


def resized(x, sides: Sequence[int]):
    """[..., h, w, C] -> [..., *sides, C], bilinear, without antialiasing, as by PyTorch's interpolate."""
    return jax.image.resize(x, (*x.shape[:-3], *sides, x.shape[-1]), "linear", antialias=False)


def _spread(token, x):
    """[..., D] -> [..., h, w, D], the size of x."""
    return jnp.broadcast_to(token[..., None, None, :], (*x.shape[:-1], token.shape[-1]))
