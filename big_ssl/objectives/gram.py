"""Matches the student's patch-similarity (Gram) matrix to that of an earlier checkpoint, whose dense features
had not degraded yet (Siméoni et al. 2025, arXiv 2508.10104, section 4).

The teacher is a frozen encoder of the config that config.init_from fills, or the EMA.
"""

import dataclasses
from typing import ClassVar, Literal

import flax.linen as nn

from big_ssl.losses.gram import gram
from big_ssl.objectives.base import Context, Inputs, StatelessObjective, Sum
from big_ssl.objectives.self_distillation import student_call, teacher_call


class Patches(nn.Module):
    """Returns patches: [B, S, N, W], and under "teacher" those of another encoder; no parameters."""

    def __call__(self, inputs, train: bool = False):
        del train
        if len(inputs) == 1:  # the student's alone, or the EMA's alone
            (outputs,) = inputs.values()
            return dict(patches=outputs["patches"])
        teacher_features = dict(patches=inputs["teacher"]["patches"])
        return dict(patches=inputs["global_crops"]["patches"], teacher=teacher_features)


@dataclasses.dataclass(frozen=True)
class Gram(StatelessObjective):
    """The mean over global crops of losses.gram.

    teacher: the encoder that teaches, "" for the EMA; masked: whether the student's global crops are masked;
    high_res: whether the teacher sees crops before downsampling.
    """

    teacher: str = ""
    masked: bool = True
    high_res: bool = False

    head: ClassVar[nn.Module] = Patches()
    scope: ClassVar[Literal["batch", "example"]] = "example"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        teacher = teacher_call(self.teacher, "patches", high_res=self.high_res)
        return dict(global_crops=student_call(self.masked, "patches"), teacher=teacher)

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective."""
        del fields, step
        loss = gram(features["patches"], features["teacher"]["patches"])
        return Sum.of_mean(loss, len(features["patches"])), {}, state


def build(teacher: str = "", masked: bool = True, high_res: bool = False, *, context: Context) -> Gram:
    """Gram anchoring of the global crops' patches; the options are those of Gram."""
    del context
    return Gram(teacher, masked, high_res)
