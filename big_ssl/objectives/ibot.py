"""Masked image modelling with an online tokenizer: iBOT (Zhou et al. 2022, arXiv 2111.07832).

At masked patches the student predicts the teacher's output on the same patches, which the teacher sees.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import cross_entropy
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.base import Context, Inputs, Sum
from big_ssl.objectives.centering import EMACenter
from big_ssl.objectives.self_distillation import (
    SelfDistillation,
    build_centering,
    build_projection,
    distribution_metrics,
    student_call,
    teacher_call,
)


class PatchHead(nn.Module):
    """Projects masked patches to the bottleneck; without `masked` all patches.

    Called with {"global_crops": the student's encoder outputs} or {"teacher": the EMA's}; returns points:
    float32[G, M, D], weights: float32[G, M] and crops: float32[B], each image's number of crops; and shared:
    prototypes: float32[D, K]. See data.masking.BlockMask for G, M and weights; if all patches count, G is B
    and M all patches of an image's crops.

    all_patches: whether a call on the EMA's outputs also returns mean: float32[B, D], the mean point of all
    patches, for iBOT's center. teacher_projection: as in objectives.dino.ClassTokenHead.
    """

    projection: ProjectionHead
    all_patches: bool = True
    teacher_projection: ProjectionHead | None = None
    masked: bool = True

    def __call__(self, inputs, train: bool = False):
        del train
        if "global_crops" not in inputs:
            return self._features(self.projection, inputs["teacher"], with_mean=self.all_patches)
        features = self._features(self.projection, inputs["global_crops"])
        if self.teacher_projection is not None:
            features["teacher"] = self._features(self.teacher_projection, inputs["teacher"])
        return features

    def _features(self, projection, outputs, with_mean=False):
        patches, shared = outputs["patches"], dict(prototypes=projection.kernel())
        examples, crops, count, width = patches.shape
        if self.masked:
            indices, weights = outputs["mask"]["indices"], outputs["mask"]["weights"]
            grouped = patches.reshape(len(indices), -1, width)
            chosen = jnp.take_along_axis(grouped, indices[..., None], axis=1)
        else:
            chosen = patches.reshape(examples, -1, width)
            weights = jnp.full(chosen.shape[:2], 1 / count, jnp.float32)
        features = dict(points=projection.project(chosen), weights=weights, shared=shared)
        features["crops"] = jnp.full(examples, crops, jnp.float32)
        return features | (dict(mean=projection.project(patches).mean((1, 2))) if with_mean else {})


@dataclasses.dataclass(frozen=True)
class Ibot(SelfDistillation):
    """masked: whether masked patches count; otherwise all patches of the global crops do, as in DINOv2's
    distillation (arXiv 2304.07193, section 5)."""

    masked: bool = True

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        student = student_call(self.masked, "patches")
        return dict(global_crops=student, teacher=teacher_call(self.teacher, "patches"))

    def loss(self, features, fields, state, step):
        """The mean over a crop's masked patches, then over all crops, those without a mask included, as
        published (arXiv 2111.07832, equation 2); see objectives.base.Objective."""
        del fields
        student, teacher = self.scores(features, step)
        mean_points = features["teacher"].get("mean", teacher.bottleneck.mean(1))
        offset, state = self.centering(state, teacher, mean_points.mean(0), self.chunk)
        pairs = cross_entropy(student, teacher, offset, self.chunk)
        weights, crops = features["weights"], features["crops"].sum()
        means = [jnp.average(x, weights=weights) for x in (pairs.cross_entropy, pairs.entropy)]
        metrics = distribution_metrics(*means, pairs.mean_target, teacher.temperature, weights.sum())
        return Sum((pairs.cross_entropy * weights).sum(), crops), metrics, state


def build(
    head: Any,
    teacher_temperature: Any = 0.04,
    student_temperature: float = 0.1,
    centering: Mapping = MappingProxyType(dict(kind="center")),
    center_over: str = "all",
    chunk: int = 0,
    teacher: str = "",
    masked: bool = True,
    *,
    context: Context,
) -> Ibot:
    """Self-distillation on masked patches.

    Args:
      head: options of models.projection_head.ProjectionHead, or the name of an objective on the same stream
        whose head it shares.
      center_over: "all" patches (iBOT) or the "masked" ones (DINOv2).
      masked: see Ibot.
      teacher_temperature, student_temperature, centering, chunk, teacher: as in objectives.dino.build.

    Raises:
      ValueError: for an unknown option, or the name of an objective that has no head.
    """
    if center_over not in ("all", "masked"):
        raise ValueError(f"ibot.center_over is {center_over!r}; use all or masked")
    owner = head if isinstance(head, str) else ""
    if owner and not isinstance(context.heads.get(owner), Mapping):
        raise ValueError(f"ibot.head is {owner!r}, which is no objective of this stream with a head")
    options = context.heads[owner] if owner else head
    projection = build_projection("ibot", options, context)
    teacher_projection = build_projection("ibot", options, context) if teacher else None
    centering_module = build_centering("ibot", centering)
    all_patches = masked and center_over == "all" and isinstance(centering_module, EMACenter)
    patches = PatchHead(projection, all_patches, teacher_projection, masked)
    schedule = context.schedule(teacher_temperature)
    return Ibot(patches, schedule, centering_module, student_temperature, chunk, teacher, owner, masked)
