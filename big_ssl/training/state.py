"""The state of a run between steps, in one pytree."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict


class TrainState(flax.struct.PyTreeNode):
    """The whole state of a run: all of it is sharded, and all of it is checkpointed.

    step: int32[], steps taken, skipped ones included; it determines the data position.
    params: {"encoders": {name: ...}, "heads": {objective: ...}}, float32.
    opt_state: the optimiser's state.
    mutable: {"encoders": {name: collections}, "heads": the same of heads that have any, missing if none has,
      "objectives": {name: ...}}: batch statistics, centers and all other values that change without a
      gradient.
    ema: None, or the EMA of {"params": params, "encoders": ..., "heads": ...}, the latter those of mutable,
      without frozen parameters, which equal their average.
    counters: int32[] each: skipped, skipped_in_a_row, and the replaced records of data.pipeline.counters.
    replaced_fraction: {stream: float32[]}, the fraction of its recent examples that replaced unusable
      records; see `failure_limits` of the config.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    mutable: Any
    ema: Any
    counters: dict[str, jax.Array]
    replaced_fraction: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


# The counters of every run; its fields add others.
COUNTERS = ("skipped", "skipped_in_a_row")


def create(
    params,
    mutable,
    optimizer,
    use_ema: bool,
    frozen=lambda name: False,
    counters: Mapping[str, Iterable[str]] | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      params, mutable: as in TrainState.
      optimizer: an optax transformation.
      use_ema: whether the state has an EMA.
      frozen: path -> whether the parameter there never changes.
      counters: {stream: the names under which its replaced records are counted}.
    """
    counters = counters or {}
    trained = {path: x for path, x in flatten_dict(params).items() if not frozen("/".join(path))}
    start = averaged(unflatten_dict(trained), mutable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        mutable=mutable,
        # A copy, since the step donates its input and no buffer can be donated twice.
        ema=jax.tree.map(jnp.copy, start) if use_ema else None,
        counters={
            name: jnp.zeros((), jnp.int32)
            for name in dict.fromkeys(itertools.chain(COUNTERS, *counters.values()))
        },
        replaced_fraction={name: jnp.zeros((), jnp.float32) for name in counters},
    )


def averaged(params, mutable):
    """The values that the EMA averages: the parameters and the running statistics of encoders and heads."""
    return {"params": params} | statistics(mutable)


def statistics(mutable):
    """The running statistics of encoders and heads: all but the objectives' states."""
    return {part: value for part, value in mutable.items() if part != "objectives"}


def evaluation_variables(state: TrainState):
    """The variables for evaluation and the teacher: the EMA if there is one, else the current weights."""
    current = averaged(state.params, state.mutable)
    return current if state.ema is None else completed(state.ema, current)


def completed(part, whole):
    """The nested dict `whole`, with its leaves replaced by those that `part` has."""
    if not isinstance(whole, Mapping):
        return part
    return {key: completed(part[key], value) if key in part else value for key, value in whole.items()}


def restricted(whole, part):
    """The leaves of the nested dict `whole` whose paths `part` has too."""
    if not isinstance(part, Mapping):
        return whole
    return {key: restricted(whole[key], value) for key, value in part.items()}
