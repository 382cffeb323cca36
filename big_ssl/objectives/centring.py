"""How a teacher's scores are kept from all going to one prototype, or to all of them."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from big_ssl.losses.self_distillation import LazyLogits, sinkhorn_log_normalizer, update_center


@dataclasses.dataclass(frozen=True)
class MovingCentre:
    """The mean score of each prototype, averaged over steps, is taken from it: DINO's and iBOT's, and
    DINOv2's for short runs. A step uses the centre as the steps before left it."""

    momentum: float = 0.9

    scope: ClassVar[Literal["batch", "example"]] = "example"

    def initial(self, prototypes: int) -> dict:
        """What is kept between steps."""
        return dict(centre=jnp.zeros(prototypes))

    def __call__(self, kept, teacher: LazyLogits, mean_point, chunk: int):
        """(what is taken from each prototype's score float32[K], what is kept after this step).

        mean_point: float32[D], whose score is the mean of this step's.
        """
        del chunk
        offset = kept["centre"] / teacher.temperature
        mean = jnp.matmul(mean_point, teacher.prototypes, precision="highest")
        return offset, dict(centre=update_center(kept["centre"], mean, self.momentum))


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
    """Every prototype gets an equal share of this step's points (DINOv2's long runs)."""

    iterations: int = 3

    scope: ClassVar[Literal["batch", "example"]] = "batch"

    def initial(self, prototypes: int) -> dict:
        """Nothing is kept."""
        del prototypes
        return {}

    def __call__(self, kept, teacher: LazyLogits, mean_point, chunk: int):
        """As MovingCentre's."""
        del mean_point
        return sinkhorn_log_normalizer(teacher, self.iterations, chunk), kept


CENTRINGS: dict[str, type[MovingCentre] | type[Sinkhorn]] = {"centre": MovingCentre, "sinkhorn": Sinkhorn}
