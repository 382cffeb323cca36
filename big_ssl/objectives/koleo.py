"""KoLeo, which spreads a batch's class tokens (Oquab et al. 2023, arXiv 2304.07193, section 4)."""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from big_ssl.losses.contrastive import l2_normalize
from big_ssl.losses.koleo import koleo
from big_ssl.objectives.base import Plain
from big_ssl.objectives.self_distillation import global_crops


class ClassTokens(nn.Module):
    """{Pass: encoder output} -> points: float32[B, S, W], the class tokens, of length 1; no parameters."""

    def __call__(self, outputs):
        (output,) = outputs.values()
        return dict(points=l2_normalize(output["pooled"].astype("float32")))


@dataclasses.dataclass(frozen=True)
class KoLeo(Plain):
    """The sum over the first `crops` large crops of losses.koleo, each crop among its own kind only.

    masked: as in objectives.dino, whose pass over the large crops it shares.
    """

    group_size: int = 0
    crops: int = 2
    masked: bool = True

    head: ClassVar[nn.Module] = ClassTokens()
    head_of: ClassVar[str] = ""
    scope: ClassVar[Literal["batch", "example"]] = "batch"

    @property
    def needs(self):
        return (global_crops(self.masked),)

    def loss(self, features, batch, mutable, step):
        """See objectives.base.Objective; koleo_distance: the mean distance to the nearest other example."""
        del batch, step
        each = jax.vmap(lambda points: koleo(points, self.group_size), in_axes=1)
        losses, distances = each(features["points"][:, : self.crops])
        return losses.sum(), dict(koleo_distance=distances.mean()), mutable
