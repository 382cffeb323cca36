"""Depth of every pixel, by a linear head or DPT on frozen or trained features.

The protocol is DINOv2's (Oquab et al. 2023, arXiv 2304.07193, section 7.4 and appendix B; its code's
configs for NYUv2).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses import depth as losses
from big_ssl.models.dpt import DPT, FACTORS, upsample
from big_ssl.models.interpolation import resize_bilinear
from big_ssl.objectives.base import (
    BatchField,
    Context,
    EncoderCall,
    Inputs,
    Provided,
    StatelessObjective,
    Sum,
)
from big_ssl.objectives.encoder_maps import encoder_maps, map_outputs
from big_ssl.objectives.options import choose

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
        x = jnp.concatenate([resize_bilinear(y, maps[0].shape[-3:-1]) for y in maps], -1)
        x = jnp.concatenate([x, *(_spread(token, x) for token in tokens)], -1)
        x = nn.Dense(max(self.bins, 1), kernel_init=_INIT, dtype=self.dtype, name="linear")(x)
        x = resize_bilinear(x.astype(jnp.float32), [self.upsample * side for side in x.shape[-3:-1]])
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


def _spread(token, x):
    """[..., D] -> [..., h, w, D], the size of x."""
    return jnp.broadcast_to(token[..., None, None, :], (*x.shape[:-1], token.shape[-1]))


def features(outputs: Mapping[str, Any], readout: str) -> tuple[list, list]:
    """The maps and readouts that a head reads.

    Args:
      outputs: of an encoder, as encoder_maps reads them, with the readout of each layer, or without layers
        its own.
      readout: the name of the readout; "" for none.

    Returns:
      (float[B, h, w, D] of each map, float32[B, D] of each layer, or one), of n crops [B, n, ...].
    """
    tokens = [owner[readout] for owner in outputs.get("layers", [outputs])] if readout else []
    return encoder_maps(outputs), tokens


@dataclasses.dataclass(frozen=True)
class Depth(StatelessObjective):
    """The scale-invariant log loss, and the gradient loss times gradient_weight, of losses.depth.

    Every pixel of a batch has a part in one mean and one variance, so that the loss is of the whole batch,
    on any number of devices and microbatches. DINOv2's code has a loss for each GPU, of the two images there:
    pixel_group=2.
    """

    head: DepthHead
    view: str = "image"
    layers: tuple[int, ...] = ()
    field: str = "depth"
    gradient_weight: float = 0.5
    warmup_steps: int = 100
    pixel_group: int = 0

    scope: ClassVar[Literal["batch", "example"]] = "batch"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        outputs = map_outputs(self.layers)
        if self.head.readout and not self.layers:  # a layer has its own
            outputs += (self.head.readout,)
        image = EncoderCall("image", self.view, outputs, self.layers)
        return dict(image=image, depth=BatchField(self.field))

    @property
    def provides(self):
        """Depths of images."""
        return dict(depth=Provided(("image",), "depth"))

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective. fields: depth: float32[B, H, W], or [B, n, H, W], 0 for unknown."""
        truth = fields["depth"]
        depth = resize_bilinear(features["depth"][..., None], truth.shape[-2:])[..., 0]
        depth, truth = (x.reshape(-1, *x.shape[-2:]) for x in (depth, truth))
        size = self.pixel_group or len(truth)
        if len(truth) % size:
            raise ValueError(f"depth: pixel_group {size} must divide a batch of {len(truth)} images")
        errors, valid = losses.log_errors(depth, truth)
        grouped = [x.reshape(-1, size, *x.shape[1:]) for x in (errors, valid)]
        scale_invariant = losses.scale_invariant_log_loss(*grouped, step < self.warmup_steps).sum()
        gradient = losses.gradient_loss(*grouped).sum()
        # Groups without a valid pixel do not count; all of a batch without one have the loss 0.
        count = jnp.maximum(grouped[1].any((1, 2, 3)).sum(), 1)
        relative = jnp.where(valid, jnp.abs(depth - truth) / jnp.where(valid, truth, 1.0), 0.0)
        metrics = dict(
            scale_invariant=Sum(scale_invariant, count),
            gradient=Sum(gradient, count),
            abs_rel=Sum(relative.sum(), jnp.maximum(valid.sum(), 1)),
        )
        return Sum(scale_invariant + self.gradient_weight * gradient, count), metrics, state


def build(
    head: Any = MappingProxyType(dict(kind="linear")),
    view: str = "image",
    layers: Sequence[int] = (),
    depth: str = "depth",
    gradient_weight: float = 0.5,
    warmup_steps: int = 100,
    pixel_group: int = 0,
    *,
    context: Context,
) -> Depth:
    """Depth of every pixel.

    Args:
      head: kind, "linear" or "dpt", and the options of LinearDepth or DPTDepth.
      view: the view that it trains on.
      layers: indices of a ViT's layers, negative ones from the end, whose outputs the head reads after the
        final norm; () for the encoder's own maps, of a ViT its last patches.
      depth: the batch field with the depths.
      gradient_weight: of the gradient loss.
      warmup_steps: the first steps of a stage, whose loss has no variance.
      pixel_group: the pixels of this many consecutive images have one mean and one variance; 0 for those of
        the whole batch.

    Raises:
      ValueError: for an unknown head or option, and for a DPT that does not read four maps.
    """
    module, options = choose("depth.head", head, HEADS, "dtype")
    encoder = context.encoders.get("image")
    count = len(layers) or len(encoder.pyramid_strides if encoder else ())
    if module is DPTDepth and count not in (0, len(FACTORS)):
        raise ValueError(f"depth.layers: a dpt reads {len(FACTORS)} maps; there are {count}")
    built = module(**options, dtype=jnp.dtype(context.dtype))
    return Depth(built, view, tuple(layers), depth, gradient_weight, warmup_steps, pixel_group)
