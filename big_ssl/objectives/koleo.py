"""KoLeo, which spreads a batch's class tokens (Oquab et al. 2023, arXiv 2304.07193, section 4)."""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from big_ssl.losses.contrastive import l2_normalize
from big_ssl.losses.koleo import koleo
from big_ssl.objectives.base import Context, Inputs, StatelessObjective, Sum
from big_ssl.objectives.self_distillation import student_call


class ClassTokens(nn.Module):
    """L2-normalises class tokens: points: float32[B, S, W]; no parameters."""

    def __call__(self, inputs, train: bool = False):
        del train
        return dict(points=l2_normalize(inputs["global_crops"]["pooled"].astype("float32")))


@dataclasses.dataclass(frozen=True)
class KoLeo(StatelessObjective):
    """The sum over the first `crops` global crops of losses.koleo; neighbours have the same crop index.

    masked: as in objectives.dino, so that both share the encoder call on the global crops.
    """

    koleo_group: int = 0
    crops: int = 2
    masked: bool = True

    head: ClassVar[nn.Module] = ClassTokens()
    scope: ClassVar[Literal["batch", "example"]] = "batch"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        return dict(global_crops=student_call(self.masked, "pooled"))

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective; distance: the mean distance to the nearest other example."""
        del fields, step
        koleo_per_crop = jax.vmap(lambda points: koleo(points, self.koleo_group), in_axes=1)
        losses, distances = koleo_per_crop(features["points"][:, : self.crops])
        return Sum(losses.sum()), dict(distance=Sum(distances.mean())), state


def build(koleo_group: int, crops: int = 2, masked: bool = True, *, context: Context) -> KoLeo:
    """KoLeo on class tokens.

    Args:
      koleo_group: nearest neighbours are searched within groups of this many consecutive examples; 0 searches
        the whole batch. Published runs search each device's batch.
      crops: 2 in the published code, 1 in the paper.
      masked: see KoLeo.
    """
    del context
    return KoLeo(koleo_group, crops, masked)
