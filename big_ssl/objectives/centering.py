"""Teacher centering: prevents collapse to one prototype or to a uniform distribution."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from big_ssl.losses.self_distillation import LazyLogits, sinkhorn_log_normalizer, update_center


@dataclasses.dataclass(frozen=True)
class EMACenter:
    """Subtracts an EMA of each prototype's mean logit (DINO, iBOT, and DINOv2's short runs). A step uses the
    center of the steps before it."""

    momentum: float = 0.9

    scope: ClassVar[Literal["batch", "example"]] = "example"

    def initial(self, prototypes: int) -> dict:
        """The state at the start of a run."""
        return dict(center=jnp.zeros(prototypes))

    def __call__(self, state, teacher: LazyLogits, mean_point, chunk: int):
        """Computes the offset and the next state.

        Args:
          state: {"center": float32[K]}, from the previous step.
          teacher: the teacher's logits of this step.
          mean_point: float32[D], the mean bottleneck feature of this step.
          chunk: unused; see objectives.self_distillation.

        Returns:
          (float32[K], the offset to subtract from each prototype's logit; the next state).
        """
        del chunk
        offset = state["center"] / teacher.temperature
        mean = jnp.matmul(mean_point, teacher.prototypes, precision="highest")
        return offset, dict(center=update_center(state["center"], mean, self.momentum))


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
    """Assigns the same number of this step's points to each prototype (DINOv2's long runs)."""

    iterations: int = 3

    scope: ClassVar[Literal["batch", "example"]] = "batch"

    def initial(self, prototypes: int) -> dict:
        """There is no state."""
        del prototypes
        return {}

    def __call__(self, state, teacher: LazyLogits, mean_point, chunk: int):
        """See EMACenter."""
        del mean_point
        return sinkhorn_log_normalizer(teacher, self.iterations, chunk), state


CENTERINGS: dict[str, type[EMACenter] | type[Sinkhorn]] = {"center": EMACenter, "sinkhorn": Sinkhorn}
