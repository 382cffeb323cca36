"""Semantic segmentation: the class of each pixel, by a linear head on frozen features, as in DINOv2's
protocol (Oquab et al. 2023, arXiv 2304.07193, section 7.4), or by UPerNet on the encoder's maps.
"""

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.segmentation import pixel_sums
from big_ssl.models import necks
from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.feature_pyramid import norm_maps
from big_ssl.models.interpolation import resize_bilinear
from big_ssl.models.upernet import UPerNet
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

# Of the classifiers, as in MMSegmentation.
_INIT = nn.initializers.normal(0.01)


class SegmentationHead(nn.Module):
    """The base of heads: called with {"image": encoder outputs}; returns logits: float32[B, h, w, classes],
    or [B, n, h, w, classes] for n crops, as coarse as the finest map that the head reads.

    bn_group: examples that share a batch norm's statistics, see models.batch_norm; 0 for the global batch,
    with grad_accum for a microbatch.
    """

    classes: int
    bn_group: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        maps = encoder_maps(inputs["image"])
        crops = maps[0].shape[:-3]
        x = self.features([x.reshape(-1, *x.shape[-3:]) for x in maps], train)
        dense = nn.Dense(self.classes, kernel_init=_INIT, dtype=self.dtype, name="classifier")
        logits = dense(x).astype(jnp.float32)
        return dict(logits=logits.reshape(*crops, *logits.shape[1:]))

    def features(self, maps: list, train: bool):
        """[B, h, w, D] of maps [B, h_i, w_i, D_i]."""
        raise NotImplementedError


class LinearSegmentation(SegmentationHead):
    """A batch norm over the channels and a linear layer, on one map or several concatenated ones."""

    def features(self, maps, train):
        x = jnp.concatenate([resize_bilinear(x, maps[0].shape[1:3]) for x in maps], -1).astype(self.dtype)
        # PyTorch's momentum of 0.1, and its epsilon.
        norm = BatchNorm(self.bn_group, 0.9, 1e-5, name="norm")
        return norm(x.transpose(3, 0, 1, 2), train).transpose(1, 2, 3, 0)


class UPerNetSegmentation(SegmentationHead):
    """UPerNet on the encoder's maps, or on what a neck makes of them.

    neck: see models.necks, None for none; encoder_strides: of the maps that it gets. map_norm: whether each
    map first gets a layer norm, see feature_pyramid.norm_maps. channels: see
    models.upernet. dropout: of whole channels, before the classifier.
    """

    neck: nn.Module | None = None
    encoder_strides: Sequence[int] = ()
    map_norm: bool = False
    channels: int = 512
    dropout: float = 0.1

    def features(self, maps, train):
        if self.neck is not None:
            maps = self.neck(tuple(maps), self.encoder_strides)
        if self.map_norm:
            maps = norm_maps(maps, self.dtype)
        x = UPerNet(self.channels, bn_group=self.bn_group, dtype=self.dtype, name="upernet")(maps, train)
        return nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)


HEADS: dict[str, type[SegmentationHead]] = {"linear": LinearSegmentation, "upernet": UPerNetSegmentation}


@dataclasses.dataclass(frozen=True)
class Segmentation(StatelessObjective):
    """The mean cross-entropy of all pixels of the batch that have a class; see `build`."""

    head: SegmentationHead
    view: str = "image"
    layers: tuple[int, ...] = ()
    field: str = "mask"
    ignore: int = 255

    scope: ClassVar[Literal["batch", "example"]] = "example"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        image = EncoderCall("image", self.view, map_outputs(self.layers), self.layers)
        return dict(image=image, mask=BatchField(self.field))

    @property
    def provides(self):
        """Logits of the classes of pixels."""
        return dict(segment=Provided(("image",), "logits"))

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective. fields: mask: int[B, H, W], or [B, n, H, W], see fields.Mask."""
        del step
        mask, logits = fields["mask"], features["logits"]
        mask, logits = mask.reshape(-1, *mask.shape[-2:]), logits.reshape(-1, *logits.shape[-3:])
        loss, right, count = pixel_sums(resize_bilinear(logits, mask.shape[1:]), mask, mask != self.ignore)
        return Sum(loss, count), dict(accuracy=Sum(right, count)), state


def build(
    classes: int,
    head: Any = MappingProxyType(dict(kind="linear")),
    view: str = "image",
    layers: Sequence[int] = (),
    mask: str = "mask",
    ignore: int = 255,
    *,
    context: Context,
) -> Segmentation:
    """Semantic segmentation of the images of `view`.

    Args:
      classes: the number of classes.
      head: kind, "linear" or "upernet", and the options of LinearSegmentation or UPerNetSegmentation; of the
        latter `neck` has a kind of models.necks and its options.
      view: the view that it trains on.
      layers: indices of a ViT's layers, negative ones from the end, whose outputs the head reads after the
        final norm; () for the encoder's own maps, of a ViT its last patches.
      mask: the batch field with the classes of pixels.
      ignore: the number for no class, as in that field.

    Raises:
      ValueError: for an unknown head or option.
    """
    set_here = ("dtype", "classes", "encoder_strides")
    module, options = choose("segmentation.head", head, HEADS, *set_here)
    if options.get("neck"):
        options["neck"] = necks.build(options["neck"], context.dtype)
        options["encoder_strides"] = context.encoders["image"].pyramid_strides
    built = module(classes, **options, dtype=jnp.dtype(context.dtype))
    return Segmentation(built, view, tuple(layers), mask, ignore)
