"""Masked image modelling with an online tokenizer: iBOT (Zhou et al. 2022, arXiv 2111.07832).

Masked patches are to agree with what the teacher says of the same patches, which it sees.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.self_distillation import centred_softmax, masked_patches, moved_centre
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.dino import global_crops


class PatchHead(nn.Module):
    """{Pass: encoder output} -> masked: float32[G, M, K], the prototype logits of masked patches; weights:
    float32[G, M]; and of a teacher's pass mean: float32[B, K], the mean logits of all patches. See
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
        features = dict(masked=self.projection(chosen), weights=mask["weights"])
        if self.all_patches and item.teacher:
            mean = self.projection.project(patches).mean((1, 2))
            features["mean"] = self.projection.logits(mean)
        return features


@dataclasses.dataclass(frozen=True)
class Ibot:
    """The term on masked patches. head_of: see objectives.base; the others as in objectives.dino."""

    head: PatchHead
    teacher_temperature: Callable
    student_temperature: float = 0.1
    centre_momentum: float = 0.9
    head_of: str = ""

    needs: ClassVar = (global_crops(masked=True), global_crops(teacher=True))
    scope: ClassVar[Literal["batch", "example"]] = "example"

    def loss(self, features, batch, mutable, step):
        """See objectives.base.Objective."""
        teacher, temperature = features["teacher"], self.teacher_temperature(step)
        crops = batch["global_crops"].shape[0] * batch["global_crops"].shape[1]
        targets = centred_softmax(teacher["masked"], mutable["centre"], temperature)
        loss, metrics = masked_patches(
            features["masked"], targets, features["weights"], crops, self.student_temperature
        )
        mean = teacher["mean"].mean(0) if self.head.all_patches else teacher["masked"].mean((0, 1))
        centre = moved_centre(mutable["centre"], mean, self.centre_momentum)
        own = {f"ibot_{name}": value for name, value in metrics.items()}
        return loss, own | dict(ibot_temperature=temperature), dict(centre=centre)

    def initial_mutable(self):
        """The centre, zero at the start: float32[K]."""
        return dict(centre=jnp.zeros(self.head.projection.prototypes))

    def project(self, head_params):
        """No constraint."""
        return head_params
