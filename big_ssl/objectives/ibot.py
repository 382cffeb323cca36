"""Masked image modelling with an online tokenizer: iBOT (Zhou et al. 2022, arXiv 2111.07832).

Masked patches are to agree with what the teacher says of the same patches, which it sees.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import agreement
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.self_distillation import (
    SelfDistillation,
    global_crops,
    own_metrics,
    parted,
    teachers_crops,
)


class PatchHead(nn.Module):
    """{Pass: encoder output} -> points: float32[G, M, D], of masked patches; weights: float32[G, M]; their
    prototypes [D, K], shared; and of an average's pass mean: float32[B, D], the mean point of all patches.
    See data.masking.BlockMask for G, M and weights; without masked all patches count: G examples, M
    patches each. teacher_projection: as in objectives.dino.

    all_patches: whether there is that mean, for the centre (iBOT).
    """

    projection: ProjectionHead
    all_patches: bool = True
    teacher_projection: ProjectionHead | None = None
    masked: bool = True

    def __call__(self, outputs):
        (own,), taught = parted(outputs)
        features = _points(self.projection, own, self.masked)
        features["weights"] = own["mask"]["weights"] if self.masked else _even_weights(own["patches"])
        if self.all_patches and any(item.teacher for item in outputs):
            features["mean"] = self.projection.project(own["patches"]).mean((1, 2))
        if self.teacher_projection is not None:
            features["teacher"] = _points(self.teacher_projection, taught[0], self.masked)
        return features


def _points(projection, output, masked):
    """Of the masked patches, or of all."""
    patches = output["patches"]
    if not masked:
        chosen = patches.reshape(len(patches), -1, patches.shape[-1])
    else:
        indices = output["mask"]["indices"]
        grouped = patches.reshape(len(indices), -1, patches.shape[-1])
        chosen = jnp.take_along_axis(grouped, indices[..., None], axis=1)
    return dict(points=projection.project(chosen), shared=dict(prototypes=projection.kernel()))


def _even_weights(patches):
    """float32[B, S * N], one by how many patches a crop has."""
    examples, crops, count, _ = patches.shape
    return jnp.full((examples, crops * count), 1 / count, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Ibot(SelfDistillation):
    """The term on masked patches. masked: whether there are such; if not, on all patches of the large crops,
    as in DINOv2's distillation (arXiv 2304.07193, section 5)."""

    masked: bool = True

    @property
    def needs(self):
        return (global_crops(self.masked), teachers_crops(self.teacher))

    def loss(self, features, batch, mutable, step):
        """The mean over a crop's masked patches, and then over all crops, those without a mask included, as
        published (arXiv 2111.07832, equation 2); see objectives.base.Objective."""
        student, teacher = self.scores(features, step)
        seen = features["teacher"].get("mean", teacher.points.mean(1))
        offset, mutable = self.centring(mutable, teacher, seen.mean(0), self.chunk)
        found = agreement(student, teacher, offset, self.chunk)
        weights = features["weights"]
        crops = batch["global_crops"].shape[0] * batch["global_crops"].shape[1]
        means = (jnp.average(x, weights=weights) for x in (found.cross_entropy, found.entropy))
        metrics = own_metrics("ibot", *means, found.mean_target, teacher.temperature)
        return (found.cross_entropy * weights).sum() / crops, metrics, mutable
