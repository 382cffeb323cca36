"""Detection with a feature pyramid, Dynamic Head (Dai et al. 2021, arXiv 2106.08322) and ATSS (Zhang et al.
2020, arXiv 1912.02424), the detector of Florence (arXiv 2111.11432, section 2.4), on any encoder with maps.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.losses import atss
from big_ssl.losses import boxes as box_lib
from big_ssl.losses import detection as losses
from big_ssl.models import necks
from big_ssl.models.dynamic_head import DynamicHead
from big_ssl.objectives.base import (
    BatchField,
    Context,
    EncoderCall,
    Inputs,
    Provided,
    StatelessObjective,
    Sum,
)

# RetinaNet's initialisation (arXiv 1708.02002, section 4.1): every anchor begins as background.
_PRIOR = 0.01
_INIT = nn.initializers.normal(0.01)
# The weight of the boxes' loss in ATSS's and Dynamic Head's code.
_BOX_WEIGHT = 2.0


class Predictions(nn.Module):
    """Three 1x1 convolutions that all levels share.

    __call__(maps: a tuple of [B, h, w, D]) -> dict of tuples, one array for each level: logits, float32[B, h,
    w, classes]; deltas, float32[B, h, w, 4], see boxes.decode_boxes, times a factor that each level learns;
    centerness, float32[B, h, w], a logit.
    """

    classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps):
        prior = nn.initializers.constant(-math.log((1 - _PRIOR) / _PRIOR))
        logits = self._conv(self.classes, "class", bias_init=prior)
        deltas, centerness = self._conv(4, "box"), self._conv(1, "centerness")
        scales = self.param("box_scale", nn.initializers.ones, (len(maps),))
        return dict(
            logits=tuple(logits(x).astype(jnp.float32) for x in maps),
            deltas=tuple(scales[i] * deltas(x).astype(jnp.float32) for i, x in enumerate(maps)),
            centerness=tuple(centerness(x)[..., 0].astype(jnp.float32) for x in maps),
        )

    def _conv(self, features, name, **options):
        return nn.Conv(features, (1, 1), kernel_init=_INIT, dtype=self.dtype, name=name, **options)


class DetectionHead(nn.Module):
    """A neck, Dynamic Head, and predictions.

    Called with {"image": encoder outputs}; returns detections, see Predictions. Of views with n crops, the
    first axis is B * n.

    neck: see models.necks. encoder_strides: of the encoder's maps. classes: 1 if all objects are one class.
    blocks: of Dynamic Head, 0 for none.
    """

    neck: nn.Module
    encoder_strides: Sequence[int]
    classes: int
    blocks: int = 6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        del train
        maps = tuple(x.reshape(-1, *x.shape[-3:]) for x in inputs["image"]["pyramid"])
        maps = self.neck(maps, self.encoder_strides)
        if self.blocks:
            maps = DynamicHead(maps[0].shape[-1], self.blocks, dtype=self.dtype, name="dynamic_head")(maps)
        return dict(detections=Predictions(self.classes, self.dtype, name="predictions")(maps))


@dataclasses.dataclass(frozen=True)
class Detection(StatelessObjective):
    """Focal loss of classes, GIoU loss of boxes and cross-entropy of centerness, of anchors chosen by ATSS.

    Each term is divided by a count of the global batch: positive anchors, their centerness, positive anchors;
    so an image without boxes has a loss of classes alone.

    view: the images; boxes: the field of their boxes. class_agnostic: whether all objects are one class.
    max_side: the longest side of images in evaluation, 0 for 5/3 of the shorter one. nms_threshold: boxes of
    one class that overlap more are one detection; candidates: of each level, before that. anchor_scale: the
    side of an anchor in strides.
    """

    head: DetectionHead
    view: str = "image"
    boxes: str = "boxes"
    class_agnostic: bool = False
    max_side: int = 0
    nms_threshold: float = 0.6
    candidates: int = 1000
    anchor_scale: float = 8.0

    scope: ClassVar[Literal["batch", "example"]] = "example"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective. Of the images themselves the loss reads the size."""
        image = EncoderCall("image", self.view, ("pyramid",))
        return dict(image=image, boxes=BatchField(self.boxes), pixels=BatchField(self.view))

    @property
    def provides(self):
        """Boxes with their classes."""
        return dict(detect=Provided(("image",), "detections"))

    @property
    def multiple(self) -> int:
        """Sides of images in evaluation are multiples of it: every map then has whole positions."""
        return math.lcm(*map(int, self.head.encoder_strides))

    def anchors(self, predictions: Mapping) -> tuple:
        """For each level of Predictions float32[h * w, 4], in pixels of the image."""
        shapes = [x.shape[1:3] for x in predictions["logits"]]
        return box_lib.anchor_boxes(shapes, self.head.neck.strides, self.anchor_scale)

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective. fields: boxes of kind boxes; pixels: uint8[B, H, W, C]."""
        del step
        predictions = features["detections"]
        anchors = self.anchors(predictions)
        targets = self._targets(anchors, fields["boxes"], fields["pixels"].shape[-3:-1])
        logits, deltas, centerness = (flat(predictions[name]) for name in ("logits", "deltas", "centerness"))
        boxes = box_lib.decode_boxes(deltas, jnp.concatenate(anchors))
        positive = targets.labels >= 0
        classes = Sum(*losses.class_loss(logits, targets.labels))
        overlap = Sum(*losses.box_loss(boxes, targets.boxes, targets.centerness))
        central = Sum(*losses.centerness_loss(centerness, targets.centerness, positive))
        metrics = dict(
            class_loss=classes,
            box_loss=overlap,
            centerness_loss=central,
            positives=Sum(positive.sum(dtype=jnp.float32), len(logits)),
        )
        return (classes, Sum(_BOX_WEIGHT * overlap.value, overlap.count), central), metrics, state

    def _targets(self, anchors, boxes, size):
        """atss.Targets of a batch, of boxes in fractions of images of this (height, width)."""
        height, width = size
        pixels = boxes["boxes"] * jnp.array([width, height, width, height], jnp.float32)
        valid = boxes["valid"].reshape(-1, boxes["valid"].shape[-1])
        pixels = jnp.where(valid[..., None], pixels.reshape(*valid.shape, 4), 0)
        labels = jnp.zeros_like(boxes["labels"]) if self.class_agnostic else boxes["labels"]
        assign = jax.vmap(lambda *image: atss.targets(anchors, *image))
        return jax.tree.map(jax.lax.stop_gradient, assign(pixels, labels.reshape(valid.shape), valid))


def flat(levels: Sequence) -> jax.Array:
    """[B, A, ...] of the levels' maps [B, h, w, ...], row by row, as anchors are."""
    return jnp.concatenate([x.reshape(len(x), -1, *x.shape[3:]) for x in levels], 1)


def build(
    classes: int,
    neck: Mapping = {"kind": "fpn"},
    blocks: int = 6,
    view: str = "image",
    boxes: str = "boxes",
    class_agnostic: bool = False,
    max_side: int = 0,
    nms_threshold: float = 0.6,
    candidates: int = 1000,
    anchor_scale: float = 8.0,
    *,
    context: Context,
) -> Detection:
    """Detection of objects by the maps of the encoder named image.

    Args:
      classes: of the objects.
      neck: kind, a name in models.necks, and its options.
      blocks: of Dynamic Head, 0 for none.
      view: the image field that it trains on.
      boxes: the field of its boxes.
      class_agnostic: whether it learns one class, object, whose boxes are classified by text
        (Predictor.detect with names); then `classes` is only compared with the data's.
      max_side, nms_threshold, candidates, anchor_scale: see Detection.

    Raises:
      ValueError: if the encoder has no maps, for an unknown neck, and for numbers out of range.
    """
    if not 0 < nms_threshold < 1 or candidates < 1 or blocks < 0:
        raise ValueError(
            f"detection: nms_threshold is {nms_threshold}, candidates {candidates}, blocks {blocks}; "
            "nms_threshold must lie in (0, 1), candidates at 1 or above, blocks at 0 or above"
        )
    encoder = context.encoders.get("image")
    if encoder is None or "pyramid" not in encoder.outputs:
        actual = "no encoder is named image" if encoder is None else f"it is a {type(encoder).__name__}"
        raise ValueError(f"detection: encoders.image must have a pyramid of maps; {actual}")
    head = DetectionHead(
        neck=necks.build(neck, context.dtype),
        encoder_strides=encoder.pyramid_strides,
        classes=1 if class_agnostic else classes,
        blocks=blocks,
        dtype=jnp.dtype(context.dtype),
    )
    options = (class_agnostic, max_side, nms_threshold, candidates, anchor_scale)
    return Detection(head, view, boxes, *options)
