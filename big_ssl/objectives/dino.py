"""Self-distillation on the class token: each crop is to agree with the teacher's view of another one.

DINO (Caron et al. 2021, arXiv 2104.14294); with masked global crops, iBOT's and DINOv2's.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import agreement, pairs
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.base import Pass
from big_ssl.objectives.self_distillation import SelfDistillation, global_crops, own_metrics

LOCAL = Pass("image", "local_crops")


class ClassTokenHead(nn.Module):
    """{Pass: encoder output} -> points: float32[B, S, D], of all passes' crops, those of the first pass
    first; and their prototypes [D, K], shared."""

    projection: ProjectionHead

    def __call__(self, outputs):
        tokens = jnp.concatenate([x["pooled"] for x in outputs.values()], axis=1)
        points = self.projection.project(tokens)
        return dict(points=points, shared=dict(prototypes=self.projection.kernel()))


@dataclasses.dataclass(frozen=True)
class Dino(SelfDistillation):
    """The term on class tokens. masked: whether the student sees its global crops masked; local: whether
    there are local crops."""

    masked: bool = True
    local: bool = True

    @property
    def needs(self):
        student = (global_crops(masked=self.masked), LOCAL)[: 1 + self.local]
        return (*student, global_crops(teacher=True))

    def loss(self, features, batch, mutable, step):
        """The mean over examples and pairs of different crops; see objectives.base.Objective."""
        del batch
        student, teacher = self.scores(features, step)
        offset, mutable = self.centring(mutable, teacher, teacher.points.mean((0, 1)), self.chunk)
        said, taught = pairs(student.points.shape[1], teacher.points.shape[1])
        found = agreement(student.at(said), teacher.at(taught), offset, self.chunk)
        metrics = own_metrics("dino", found, 1.0, teacher.temperature)
        return found.cross_entropy.mean(), metrics, mutable
