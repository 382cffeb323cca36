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
from big_ssl.models.dynamic_head import DynamicHead, Predictions
from big_ssl.objectives.base import (
    BatchField,
    Context,
    EncoderCall,
    Inputs,
    Provided,
    StatelessObjective,
    Sum,
)

# The weight of the boxes' loss in ATSS's and Dynamic Head's code.
_BOX_WEIGHT = 2.0


class DetectionHead(nn.Module):
    """A neck, Dynamic Head, and predictions.

    Called with {"image": encoder outputs}; returns detections, see Predictions. Of views with n crops, the
    first axis is B * n.

    neck: see models.necks. encoder_strides: of the encoder's maps. classes: 1 if all objects are one class.
    blocks: of Dynamic Head, 0 for none; groups, misindexed_offsets: see DynamicHead.
    """

    neck: nn.Module
    encoder_strides: Sequence[int]
    classes: int
    blocks: int = 6
    groups: int = 16
    misindexed_offsets: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        del train
        maps = tuple(x.reshape(-1, *x.shape[-3:]) for x in inputs["image"]["pyramid"])
        maps = self.neck(maps, self.encoder_strides)
        if self.blocks:
            options = (self.blocks, self.groups, self.misindexed_offsets, self.dtype)
            maps = DynamicHead(maps[0].shape[-1], *options, name="dynamic_head")(maps)
        return dict(detections=Predictions(self.classes, dtype=self.dtype, name="predictions")(maps))


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
        predictions, size = features["detections"], fields["pixels"].shape[-3:-1]
        self._check_size(predictions["centerness"][0].shape[1:], size)
        anchors = self.anchors(predictions)
        targets = self._targets(anchors, fields["boxes"], size)
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

    def _check_size(self, shape, size):
        """Raises ValueError if the finest map is not that of images of this (height, width)."""
        stride = self.head.neck.strides[0]
        if any(abs(cells * stride - side) > 2 * stride for cells, side in zip(shape, size, strict=True)):
            raise ValueError(
                f"detection: the map of stride {stride} has {shape} positions, the images {size} pixels; "
                f"the field {self.view} must not be downsampled"
            )

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
    groups: int = 16,
    misindexed_offsets: bool = False,
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
      groups, misindexed_offsets: see models.dynamic_head.DynamicHead; misindexed_offsets is for published
        weights alone.
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
        groups=groups,
        misindexed_offsets=misindexed_offsets,
        dtype=jnp.dtype(context.dtype),
    )
    options = (class_agnostic, max_side, nms_threshold, candidates, anchor_scale)
    return Detection(head, view, boxes, *options)
