"""Gram anchoring: patches are to be alike where they are to a teacher that still told them well apart.

Long runs lose that (Siméoni et al. 2025, arXiv 2508.10104, section 4). There the teacher is an earlier
checkpoint, frozen: an encoder of the config that config.init_from fills and config.rates freezes.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn

from big_ssl.losses.gram import gram
from big_ssl.objectives.base import Plain
from big_ssl.objectives.self_distillation import global_crops, parted, teachers_crops


class Patches(nn.Module):
    """{Pass: encoder output} -> patches: [B, S, N, W], and "teacher" where another encoder teaches."""

    def __call__(self, outputs):
        (own,), taught = parted(outputs)
        features = dict(patches=own["patches"])
        return features | dict(teacher=dict(patches=taught[0]["patches"])) if taught else features


@dataclasses.dataclass(frozen=True)
class Gram(Plain):
    """The mean over large crops of losses.gram. teacher: see objectives.self_distillation; masked: whether
    it reads the student's masked pass, with all patches; large: whether the teacher sees crops before
    views.global_crops.shrink makes them smaller, as there at twice the size."""

    teacher: str = ""
    masked: bool = True
    large: bool = False

    head: ClassVar[nn.Module] = Patches()
    head_of: ClassVar[str] = ""
    scope: ClassVar[Literal["batch", "example"]] = "example"

    @property
    def needs(self):
        return (global_crops(self.masked), teachers_crops(self.teacher, self.large))

    def loss(self, features, batch, mutable, step):
        """See objectives.base.Objective."""
        del batch, step
        return gram(features["patches"], features["teacher"]["patches"]), {}, mutable
