"""Self-distillation on the class token: each crop is to agree with the teacher's view of another one.

DINO (Caron et al. 2021, arXiv 2104.14294); with masked global crops, iBOT's and DINOv2's.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import between_views, cross_agreement
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.base import Pass
from big_ssl.objectives.self_distillation import (
    STUDENT,
    SelfDistillation,
    global_crops,
    own_metrics,
    parted,
    teachers_crops,
)

LOCAL = Pass(STUDENT, "local_crops")


class ClassTokenHead(nn.Module):
    """{Pass: encoder output} -> points: float32[B, S, D], of all passes' crops, those of the first pass
    first; and their prototypes [D, K], shared. With another encoder for a teacher, whose projection is
    teacher_projection, "teacher" holds the same of its passes."""

    projection: ProjectionHead
    teacher_projection: ProjectionHead | None = None

    def __call__(self, outputs):
        own, taught = parted(outputs)
        features = _points(self.projection, own)
        if self.teacher_projection is None:
            return features
        return features | dict(teacher=_points(self.teacher_projection, taught))


def _points(projection, outputs):
    points = projection.project(jnp.concatenate([x["pooled"] for x in outputs], axis=1))
    return dict(points=points, shared=dict(prototypes=projection.kernel()))


@dataclasses.dataclass(frozen=True)
class Dino(SelfDistillation):
    """The term on class tokens. masked: whether the student sees its global crops masked; local: whether
    there are local crops."""

    masked: bool = True
    local: bool = True

    @property
    def needs(self):
        student = (global_crops(self.masked), LOCAL)[: 1 + self.local]
        return (*student, teachers_crops(self.teacher))

    def loss(self, features, batch, mutable, step):
        """The mean over examples and pairs of different crops; see objectives.base.Objective."""
        del batch
        student, teacher = self.scores(features, step)
        offset, mutable = self.centring(mutable, teacher, teacher.points.mean((0, 1)), self.chunk)
        found = cross_agreement(student, teacher, offset, self.chunk)
        loss = between_views(found.cross_entropy)
        means = loss, found.entropy.mean(), found.mean_target
        return loss, own_metrics("dino", *means, teacher.temperature), mutable
