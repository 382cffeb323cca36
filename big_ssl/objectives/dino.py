"""Self-distillation on the class token: each crop predicts the teacher's output on another crop.

DINO (Caron et al. 2021, arXiv 2104.14294); with masked global crops, iBOT's and DINOv2's.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import between_views, pairwise_cross_entropy
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.base import Context, EncoderCall, Inputs, Sum
from big_ssl.objectives.self_distillation import (
    STUDENT,
    SelfDistillation,
    build_centering,
    build_projection,
    distribution_metrics,
    student_call,
    teacher_call,
)


class ClassTokenHead(nn.Module):
    """Projects class tokens to the bottleneck.

    Called with {"global_crops", "local_crops": the student's encoder outputs} or {"teacher": the EMA's};
    returns points: float32[B, S, D], global crops first, and shared: prototypes: float32[D, K]. If the
    teacher is another encoder, with teacher_projection as its projection, all inputs come in one call, and
    "teacher" contains the same features of its outputs.
    """

    projection: ProjectionHead
    teacher_projection: ProjectionHead | None = None

    def __call__(self, inputs, train: bool = False):
        del train
        if self.teacher_projection is None:
            return _points(self.projection, inputs.values())
        student = [outputs for name, outputs in inputs.items() if name != "teacher"]
        teacher_features = _points(self.teacher_projection, [inputs["teacher"]])
        return _points(self.projection, student) | dict(teacher=teacher_features)


def _points(projection, outputs):
    points = projection.project(jnp.concatenate([x["pooled"] for x in outputs], axis=1))
    return dict(points=points, shared=dict(prototypes=projection.kernel()))


@dataclasses.dataclass(frozen=True)
class Dino(SelfDistillation):
    """masked: whether the student's global crops are masked; local: whether there are local crops."""

    masked: bool = True
    local: bool = True

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        student = dict(global_crops=student_call(self.masked, "pooled"))
        if self.local:
            student["local_crops"] = EncoderCall(STUDENT, "local_crops")
        return student | dict(teacher=teacher_call(self.teacher, "pooled"))

    def loss(self, features, fields, state, step):
        """The mean over examples and pairs of different crops; see objectives.base.Objective."""
        del fields
        student, teacher = self.scores(features, step)
        offset, state = self.centering(state, teacher, teacher.bottleneck.mean((0, 1)), self.chunk)
        pairs = pairwise_cross_entropy(student, teacher, offset, self.chunk)
        loss, count = between_views(pairs.cross_entropy), len(student.bottleneck)
        means = loss, pairs.entropy.mean(), pairs.mean_target
        return Sum.of_mean(loss, count), distribution_metrics(*means, teacher.temperature, count), state


def build(
    head: Mapping,
    teacher_temperature: Any = 0.04,
    student_temperature: float = 0.1,
    centering: Mapping = MappingProxyType(dict(kind="center")),
    chunk: int = 0,
    teacher: str = "",
    masked: bool = True,
    local: bool = True,
    *,
    context: Context,
) -> Dino:
    """Self-distillation on class tokens.

    Args:
      head: options of models.projection_head.ProjectionHead.
      teacher_temperature: a number or a schedule.
      student_temperature: a number.
      centering: kind, "center" or "sinkhorn", and its options (objectives/centering.py).
      chunk: see objectives.self_distillation.
      teacher: the encoder that teaches, "" for the EMA.
      masked: whether the student's global crops are masked.
      local: whether there are local crops.

    Raises:
      ValueError: for an unknown option.
    """
    projection = build_projection("dino", head, context)
    teacher_projection = build_projection("dino", head, context) if teacher else None
    return Dino(
        ClassTokenHead(projection, teacher_projection),
        context.schedule(teacher_temperature),
        build_centering("dino", centering),
        student_temperature,
        chunk,
        teacher,
        masked=masked,
        local=local,
    )
