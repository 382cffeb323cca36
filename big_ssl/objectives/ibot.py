"""Masked image modelling with an online tokenizer: iBOT (Zhou et al. 2022, arXiv 2111.07832).

Masked patches are to agree with what the teacher says of the same patches, which it sees.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import agreement
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.self_distillation import SelfDistillation, global_crops, own_metrics


class PatchHead(nn.Module):
    """{Pass: encoder output} -> points: float32[G, M, D], of masked patches; weights: float32[G, M]; their
    prototypes [D, K], shared; and of a teacher's pass mean: float32[B, D], the mean point of all patches. See
    data.masking.BlockMask for G, M and weights.

    all_patches: whether there is that mean, for the centre (iBOT).
    """

    projection: ProjectionHead
    all_patches: bool = True

    def __call__(self, outputs):
        ((item, output),) = outputs.items()
        patches, mask = output["patches"], output["mask"]
        grouped = patches.reshape(len(mask["indices"]), -1, patches.shape[-1])
        chosen = jnp.take_along_axis(grouped, mask["indices"][..., None], axis=1)
        features = dict(points=self.projection.project(chosen), weights=mask["weights"])
        if self.all_patches and item.teacher:
            features["mean"] = self.projection.project(patches).mean((1, 2))
        return features | dict(shared=dict(prototypes=self.projection.kernel()))


@dataclasses.dataclass(frozen=True)
class Ibot(SelfDistillation):
    """The term on masked patches."""

    needs: ClassVar = (global_crops(masked=True), global_crops(teacher=True))

    def loss(self, features, batch, mutable, step):
        """The mean over a crop's masked patches, and then over all crops, those without a mask included, as
        published (arXiv 2111.07832, equation 2); see objectives.base.Objective."""
        student, teacher = self.scores(features, step)
        seen = features["teacher"]["mean"] if self.head.all_patches else teacher.points.mean(1)
        offset, mutable = self.centring(mutable, teacher, seen.mean(0), self.chunk)
        found = agreement(student, teacher, offset, self.chunk)
        weights = features["weights"]
        crops = batch["global_crops"].shape[0] * batch["global_crops"].shape[1]
        metrics = own_metrics("ibot", found, weights, teacher.temperature)
        return (found.cross_entropy * weights).sum() / crops, metrics, mutable
