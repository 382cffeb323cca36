"""Schedules: functions of the step, built from plain values."""

from collections.abc import Mapping

import jax.numpy as jnp
import optax


def build(value, total_steps: int) -> optax.Schedule:
    """A schedule from a config value: a number stays constant, a mapping is one of

    dict(kind="linear" | "cosine", peak=..., warmup_steps=..., final=0.0, start=0.0): linear
    warm-up from `start` to `peak`, then linear or cosine decay, which reaches `final` at total_steps;
    dict(kind="steps", values=((0, a), (step, b), ...)): each value from its step on.
    Raises ValueError naming an unknown kind, or a warm-up that does not fit into the run.
    """
    if not isinstance(value, Mapping):
        return optax.constant_schedule(float(value))
    kind = value["kind"]
    if kind == "steps":
        return _steps(value["values"])
    if kind not in ("linear", "cosine"):
        raise ValueError(f'schedule: kind {kind!r} is unknown; "linear", "cosine" and "steps" are known')
    warmup, peak = value["warmup_steps"], value["peak"]
    if not 0 <= warmup < total_steps:
        raise ValueError(f"schedule: warmup_steps {warmup} must be below total_steps {total_steps}")
    decay_steps, final = total_steps - warmup, value.get("final", 0.0)
    if kind == "linear":
        decay = optax.linear_schedule(peak, final, decay_steps)
    else:
        cosine = optax.cosine_decay_schedule(peak - final, decay_steps)

        def decay(step):
            return final + cosine(step)

    if not warmup:
        return decay
    rise = optax.linear_schedule(value.get("start", 0.0), peak, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def is_schedule(value) -> bool:
    """Whether a config value is a mapping that `build` knows, and no plain number."""
    return isinstance(value, Mapping) and "kind" in value


def _steps(values):
    starts, numbers = zip(*values, strict=True)
    if starts[0] != 0 or list(starts) != sorted(set(starts)):
        raise ValueError(f"schedule: steps {list(starts)} must begin with 0 and rise")
    return optax.join_schedules([optax.constant_schedule(x) for x in numbers], starts[1:])


def ema_momentum(value, total_steps: int) -> optax.Schedule:
    """The momentum of the moving average, from config.ema: a schedule as `build` takes it, 0 for no average.

    Besides, dict(kind="warmup", momentum=...) is min(momentum, (1 + step) / (10 + step)): a short memory at
    first, so that a short run's average forgets its start. Raises ValueError for a momentum outside [0, 1),
    and for what is no schedule.
    """
    if not isinstance(value, Mapping):
        return build(_checked(value), total_steps)
    if value.get("kind") != "warmup":
        return build(value, total_steps)
    if set(value) != {"kind", "momentum"}:
        raise ValueError(f"warmup takes momentum, not {', '.join(key for key in value if key != 'kind')}")
    momentum = _checked(value["momentum"])
    return lambda step: jnp.minimum(momentum, (1 + step) / (10 + step))


def _checked(momentum):
    if not 0 <= momentum < 1:
        raise ValueError(f"{momentum} must lie in [0, 1)")
    return momentum
