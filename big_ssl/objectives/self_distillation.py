"""What the terms of DINO and iBOT have in common.

The teacher is the student's own average, or, in distillation, another encoder of the config that is frozen
(config.rates) and starts from weights (config.init_from).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from big_ssl.losses.self_distillation import Scores, target_metrics
from big_ssl.objectives.base import Pass, Plain
from big_ssl.objectives.centring import MovingCentre, Sinkhorn

STUDENT = "image"


def global_crops(masked: bool = False) -> Pass:
    """The student's pass over the large crops."""
    return Pass(STUDENT, "global_crops", masked=masked)


def teachers_crops(teacher: str, large: bool = False) -> Pass:
    """The teacher's: of the encoder of that name, or for "" of the student's average."""
    return Pass(teacher or STUDENT, "global_crops", teacher=not teacher, large=large)


def parted(outputs) -> tuple[list, list]:
    """What the student's passes, or its average's, gave, and what another encoder's did."""
    own = [x for item, x in outputs.items() if item.encoder == STUDENT]
    return own, [x for item, x in outputs.items() if item.encoder != STUDENT]


@dataclasses.dataclass(frozen=True)
class SelfDistillation(Plain):
    """A student's points are to score prototypes as the teacher's do.

    head: has a `projection`, and gives points, and its prototypes under "shared"; teacher_temperature: by the
    step; centring: of the teacher's scores; chunk: points of a group whose scores exist at a time (in
    objectives.dino the student's), made again for the gradient; 0 for all, kept;
    teacher: the encoder that teaches, "" for the average; head_of: see objectives.base.
    """

    head: Any
    teacher_temperature: Callable
    centring: MovingCentre | Sinkhorn
    student_temperature: float = 0.1
    chunk: int = 0
    teacher: str = ""
    head_of: str = ""

    @property
    def scope(self):
        """Centring couples examples only where it is by this step's."""
        return self.centring.scope

    def initial_mutable(self) -> Any:
        """What the centring keeps."""
        return self.centring.initial(self.head.projection.prototypes)

    def scores(self, features, step) -> tuple[Scores, Scores]:
        """The student's and the teacher's scores of all points; no gradient goes to the teacher."""
        taught = jax.lax.stop_gradient(features["teacher"])
        dtype = self.head.projection.dtype

        def made(x, temperature):
            return Scores(x["points"], x["shared"]["prototypes"], temperature, dtype)

        return made(features, self.student_temperature), made(taught, self.teacher_temperature(step))


def own_metrics(name: str, cross_entropy, entropy, mean_target, temperature) -> dict:
    """A term's metrics under its name; see losses.self_distillation.target_metrics."""
    metrics = target_metrics(cross_entropy, entropy, mean_target) | dict(temperature=temperature)
    return {f"{name}_{key}": value for key, value in metrics.items()}
