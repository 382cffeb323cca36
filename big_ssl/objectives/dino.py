"""Self-distillation on the class token: each crop is to agree with the teacher's view of another one.

DINO (Caron et al. 2021, arXiv 2104.14294); with masked global crops, iBOT's and DINOv2's.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import centred_softmax, cross_view, moved_centre
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.base import Pass

LOCAL = Pass("image", "local_crops")


def global_crops(**how) -> Pass:
    """The pass over the large crops, masked or not, the student's or the teacher's."""
    return Pass("image", "global_crops", **how)


class ClassTokenHead(nn.Module):
    """{Pass: encoder output} -> crops: float32[B, S, K], the prototype logits of all passes' crops,
    those of the first pass first."""

    projection: ProjectionHead

    def __call__(self, outputs):
        return dict(crops=self.projection(jnp.concatenate([x["pooled"] for x in outputs.values()], axis=1)))


@dataclasses.dataclass(frozen=True)
class Dino:
    """The term on class tokens. teacher_temperature: by the step; centre_momentum: of the teacher's mean
    logits; masked: whether the student sees its global crops masked; local: whether there are local crops.
    """

    head: ClassTokenHead
    teacher_temperature: Callable
    student_temperature: float = 0.1
    centre_momentum: float = 0.9
    masked: bool = True
    local: bool = True

    head_of: ClassVar[str] = ""
    scope: ClassVar[Literal["batch", "example"]] = "example"

    @property
    def needs(self):
        student = (global_crops(masked=self.masked), LOCAL)[: 1 + self.local]
        return (*student, global_crops(teacher=True))

    def loss(self, features, batch, mutable, step):
        """See objectives.base.Objective."""
        del batch
        logits = features["teacher"]["crops"]
        temperature = self.teacher_temperature(step)
        targets = centred_softmax(logits, mutable["centre"], temperature)
        loss, metrics = cross_view(features["crops"], targets, self.student_temperature)
        centre = moved_centre(mutable["centre"], logits.mean((0, 1)), self.centre_momentum)
        own = {f"dino_{name}": value for name, value in metrics.items()}
        return loss, own | dict(dino_temperature=temperature), dict(centre=centre)

    def initial_mutable(self):
        """The centre, zero at the start: float32[K]."""
        return dict(centre=jnp.zeros(self.head.projection.prototypes))

    def project(self, head_params):
        """No constraint."""
        return head_params
