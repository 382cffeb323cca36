"""Supervised classification, from scratch or on encoders that other objectives have trained."""

import dataclasses
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.data import mixing
from big_ssl.losses import classification as losses
from big_ssl.objectives.base import (
    BatchField,
    Context,
    EncoderCall,
    Inputs,
    Provided,
    StatelessObjective,
    Sum,
)

LOSSES = {"softmax": losses.softmax_cross_entropy, "sigmoid": losses.sigmoid_cross_entropy}

# BEiT's initialisation of a classifier (run_class_finetuning.py): nearly equal logits for all classes.
_INIT = nn.initializers.normal(0.02 * 0.001)


class ClassifierHead(nn.Module):
    """A linear classifier of pooled outputs.

    Called with {"image": encoder outputs}; returns logits: float32[B, classes], or [B, n, classes] for n
    crops, and mix_ratio: float32[B] if images are mixed (data/mixing.py).
    """

    classes: int

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        del train
        image = inputs["image"]
        logits = nn.Dense(self.classes, kernel_init=_INIT, name="linear")(image["pooled"])
        return dict(logits=logits) | {key: image[key] for key in image if key == "mix_ratio"}


@dataclasses.dataclass(frozen=True)
class Classification(StatelessObjective):
    """view: the view that it trains on; loss_kind: a key of LOSSES."""

    head: ClassifierHead
    view: str = "image"
    loss_kind: str = "softmax"
    label_smoothing: float = 0.0
    label: str = "label"

    scope: ClassVar[Literal["batch", "example"]] = "example"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        return dict(image=EncoderCall("image", self.view), label=BatchField(self.label))

    @property
    def provides(self):
        """Logits of images."""
        return dict(classify=Provided(("image",), "logits"))

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective. fields: label: int32[B]."""
        del step
        logits, labels, mix_ratio = features["logits"], fields["label"], features.get("mix_ratio")
        partners = None if mix_ratio is None else mixing.partners(labels)
        targets = losses.targets(labels, self.head.classes, self.label_smoothing, partners, mix_ratio)
        if logits.ndim == 3:  # all crops of an image show its class
            targets = jnp.broadcast_to(targets[:, None], logits.shape)
        loss = LOSSES[self.loss_kind](logits, targets)
        accuracy = losses.accuracy(logits, targets)
        count = math.prod(logits.shape[:-1])
        return Sum.of_mean(loss, count), dict(accuracy=Sum.of_mean(accuracy, count)), state


def build(
    classes: int,
    view: str = "image",
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    label: str = "label",
    *,
    context: Context,
) -> Classification:
    """Supervised classification of the images of `view`.

    Args:
      classes: the number of classes.
      view: the view that it trains on.
      loss: "softmax" or "sigmoid".
      label_smoothing: the fraction of a target's mass that is spread over all classes.
      label: the batch field with the classes.

    Raises:
      ValueError: for an unknown loss.
    """
    del context
    if loss not in LOSSES:
        raise ValueError(f"classification.loss is {loss!r}; use {', '.join(LOSSES)}")
    return Classification(ClassifierHead(classes), view, loss, label_smoothing, label)
