"""Supervised classification, from scratch or of what other objectives have trained."""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.data import mixing
from big_ssl.losses import classification as losses
from big_ssl.objectives.base import Pass, Plain

LOSSES = {"softmax": losses.softmax_cross_entropy, "sigmoid": losses.sigmoid_cross_entropy}

# BEiT's start of a classifier (run_class_finetuning.py): all classes as good as equal.
_INIT = nn.initializers.normal(0.02 * 0.001)


class ClassifierHead(nn.Module):
    """{Pass: encoder output} -> logits: float32[B, classes], or [B, n, classes] of n crops; and share:
    float32[B] of mixed pictures, see data.mixing."""

    classes: int

    @nn.compact
    def __call__(self, outputs):
        (output,) = outputs.values()
        logits = nn.Dense(self.classes, kernel_init=_INIT, name="linear")(output["pooled"])
        return dict(logits=logits) | {key: output[key] for key in output if key == "share"}


@dataclasses.dataclass(frozen=True)
class Classification(Plain):
    """The term. view: which view it trains on; form: a name in LOSSES."""

    head: ClassifierHead
    view: str = "image"
    form: str = "softmax"
    label_smoothing: float = 0.0

    head_of: ClassVar[str] = ""
    scope: ClassVar[Literal["batch", "example"]] = "example"

    @property
    def needs(self) -> tuple[Pass, ...]:
        """One pass, whose pooled outputs the head classifies."""
        return (Pass("image", self.view),)

    def loss(self, features, batch, mutable, step):
        """See objectives.base.Objective. batch: with label: int32[B]."""
        del step
        logits, labels = features["logits"], batch["label"]
        share = features.get("share")
        partners = None if share is None else mixing.partners(labels)
        targets = losses.targets(labels, self.head.classes, self.label_smoothing, partners, share)
        if logits.ndim == 3:  # all crops of a picture show its class
            targets = jnp.broadcast_to(targets[:, None], logits.shape)
        metrics = dict(accuracy=losses.accuracy(logits, targets))
        return LOSSES[self.form](logits, targets), metrics, mutable
