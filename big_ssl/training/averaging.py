"""The moving average's momentum, from config.ema."""

from collections.abc import Mapping

import jax.numpy as jnp
import optax

from big_ssl.training import schedules


def build(value, total_steps: int) -> optax.Schedule:
    """The momentum by the step: a number, 0 for no average, stays as it is, as in every schedule; so does a
    mapping that training.schedules knows. dict(kind="warmup", momentum=...): min(momentum, (1 + step) /
    (10 + step)), a short memory at first, so that a short run's average forgets its start.

    Raises ValueError for a momentum outside [0, 1), and for what is no schedule.
    """
    if not isinstance(value, Mapping):
        return schedules.build(_checked(value), total_steps)
    if value.get("kind") != "warmup":
        return schedules.build(value, total_steps)
    if set(value) != {"kind", "momentum"}:
        raise ValueError(f"warmup takes momentum, not {', '.join(key for key in value if key != 'kind')}")
    momentum = _checked(value["momentum"])
    return lambda step: jnp.minimum(momentum, (1 + step) / (10 + step))


def _checked(momentum):
    if not 0 <= momentum < 1:
        raise ValueError(f"{momentum} must lie in [0, 1)")
    return momentum
