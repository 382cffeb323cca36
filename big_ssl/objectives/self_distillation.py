"""The base of DINO's and iBOT's objectives.

The teacher is the student's own EMA, or, in distillation, another encoder of the config that is frozen
(config.lr_multipliers) and starts from weights (config.init_from).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from big_ssl.losses.self_distillation import LazyLogits, target_metrics
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.base import Context, EncoderCall, StatelessObjective, Sum
from big_ssl.objectives.centering import CENTERINGS, EMACenter, Sinkhorn
from big_ssl.objectives.options import check_known, choose, field_names

STUDENT = "image"


def student_call(masked: bool, *outputs: str) -> EncoderCall:
    """The student's call on the global crops."""
    return EncoderCall(STUDENT, "global_crops", outputs, masked=masked)


def teacher_call(teacher: str, *outputs: str, high_res: bool = False) -> EncoderCall:
    """The call on the global crops of the encoder `teacher`, or, for "", of the student's EMA."""
    return EncoderCall(teacher or STUDENT, "global_crops", outputs, teacher=not teacher, high_res=high_res)


@dataclasses.dataclass(frozen=True)
class SelfDistillation(StatelessObjective):
    """Trains the student to predict the teacher's distribution over prototypes.

    head: has a `projection`; returns points, and prototypes under "shared".
    teacher_temperature: a function of the step.
    centering: of the teacher's logits.
    chunk: logits are computed for this many points at a time, and recomputed in the backward pass; 0 computes
      all at once and keeps them.
    teacher: the encoder that teaches, "" for the EMA.
    shares_head_with: see objectives.base.
    """

    head: Any
    teacher_temperature: Callable
    centering: EMACenter | Sinkhorn
    student_temperature: float = 0.1
    chunk: int = 0
    teacher: str = ""
    shares_head_with: str = ""

    @property
    def scope(self):
        """Centering couples examples only if it uses this step's logits."""
        return self.centering.scope

    def initial_state(self) -> Any:
        """The centering's."""
        return self.centering.initial(self.head.projection.prototypes)

    def scores(self, features, step) -> tuple[LazyLogits, LazyLogits]:
        """The student's and the teacher's logits of all points; no gradient goes to the teacher."""
        teacher_features = jax.lax.stop_gradient(features["teacher"])
        dtype = self.head.projection.dtype

        def logits(x, temperature):
            return LazyLogits(x["points"], x["shared"]["prototypes"], temperature, dtype)

        return logits(features, self.student_temperature), logits(
            teacher_features, self.teacher_temperature(step)
        )


def distribution_metrics(cross_entropy, entropy, mean_target, temperature, count) -> dict[str, Sum]:
    """The metrics of both objectives.

    Args:
      cross_entropy, entropy, mean_target: as in losses.self_distillation.target_metrics.
      temperature: the teacher's, float32[].
      count: over how many examples or patches the metrics are means.

    Returns:
      {name: Sum}: those of target_metrics, and teacher_temperature.
    """
    metrics = target_metrics(cross_entropy, entropy, mean_target)
    return {name: Sum.of_mean(value, count) for name, value in metrics.items()} | dict(
        teacher_temperature=Sum(temperature)
    )


def build_projection(name: str, options: Mapping, context: Context) -> ProjectionHead:
    """The head of objective `name` from its options in the config. Raises ValueError for an unknown one."""
    check_known(f"{name}.head", options, field_names(ProjectionHead, "dtype"))
    return ProjectionHead(**options, dtype=jnp.dtype(context.dtype))


def build_centering(name: str, options: Mapping) -> EMACenter | Sinkhorn:
    """The centering of objective `name`, of kind options["kind"]. Raises ValueError for an unknown kind or
    option."""
    centering, arguments = choose(f"{name}.centering", options, CENTERINGS)
    return centering(**arguments)
