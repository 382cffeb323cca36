"""Schedules: functions of the step, built from plain values."""

from collections.abc import Mapping

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
