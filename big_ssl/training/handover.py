"""Hands the state of one stage of a run over to the next, by the rules in training/stages.py."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.parallel.sharding import path_name
from big_ssl.training import build, initial
from big_ssl.training import state as state_lib
from big_ssl.training.stages import Stage
from big_ssl.training.state import TrainState


def check(stage: Stage, before: TrainState, after: TrainState) -> None:
    """Raises ValueError, naming the array, if a stage can't start from the state of the previous one.

    Args:
      stage: the later stage, whose `handover` has the rules.
      before, after: shapes and dtypes of both stages' states.
    """
    _weight_sources(stage, before, after)
    _sources(stage, stage.handover.objectives, before.mutable["objectives"], after.mutable["objectives"])
    if before.ema is not None and after.ema is not None:
        _sources(stage, stage.handover.ema, before.ema, after.ema)


def hand_over(stage: Stage, before: TrainState, after: TrainState) -> TrainState:
    """The state that a stage starts with.

    Args:
      stage: the stage, whose `handover` has the rules.
      before: the final state of the previous stage.
      after: a new initial state of this stage, which the rules fill.

    Returns:
      The filled state; each array has the sharding that it has in `after`.
    """
    handed_on = _weight_sources(stage, before, after)
    weights = _placed(handed_on, _weights(after))
    states = after.mutable["objectives"]
    states = _placed(_sources(stage, stage.handover.objectives, before.mutable["objectives"], states), states)
    optimizer = "moments" if stage.handover.optimizer == "keep" else "reset"
    moments = _sources(stage, optimizer, before.opt_state, after.opt_state)
    fractions = {k: before.replaced_fraction.get(k, x) for k, x in after.replaced_fraction.items()}
    if jax.process_index() == 0:
        print(f"stage {stage.name}: {_summary(handed_on, before, after)}", flush=True)
    return after.replace(
        step=before.step,
        params=weights["params"],
        opt_state=_placed(moments, after.opt_state),
        mutable={part: x for part, x in weights.items() if part != "params"} | dict(objectives=states),
        ema=_average(stage, before, after, weights),
        counters={name: before.counters.get(name, x) for name, x in after.counters.items()},
        replaced_fraction=fractions,
    )


def _weights(state):
    return state_lib.averaged(state.params, state.mutable)


def _weight_sources(stage, before, after):
    """{path: array} of parameters and running statistics, remapped ones included."""
    sources = _sources(stage, stage.handover.params, _weights(before), _weights(after))
    places, available = _by_path(_weights(after)), _by_path(state_lib.evaluation_variables(before))
    for pattern, replacement in stage.handover.remap:
        copies = {re.sub(pattern, replacement, path): path for path in available if re.search(pattern, path)}
        copies = {place: path for place, path in copies.items() if place in places}
        if not copies:
            raise ValueError(f"stages.{stage.name}.handover.remap: {pattern!r} leads to no weights")
        # A copy, since the step donates its input and no buffer can be donated twice.
        sources |= {
            place: _copied(_fitted(stage, place, available[path], places[place]))
            for place, path in copies.items()
        }
    return sources


def _average(stage, before, after, weights):
    """The EMA: handed on, or starting at the weights if the previous stage has none."""
    if after.ema is None:
        return None
    rule = stage.handover.ema if before.ema is not None else "reset"
    sources = _sources(stage, rule, before.ema, after.ema)
    started = {path: _copied(x) for path, x in _by_path(weights).items() if path not in sources}
    return _placed(started | sources, after.ema)


def _sources(stage, rule, before, after):
    """{path: array} of the arrays in one part of the state that are handed on.

    rule: a value of the handover's rules, or "moments": moments of another shape restart.
    """
    excluded = re.compile("|".join(f"(?:{pattern})" for pattern in stage.handover.exclude) or r"(?!)")
    available = {} if rule == "reset" else _by_path(before)
    sources = {}
    for path, leaf in _by_path(after).items():
        if path not in available or excluded.search(path):
            continue
        if available[path].shape == leaf.shape:
            sources[path] = available[path]
        elif rule == "resize":
            sources[path] = _fitted(stage, path, available[path], leaf)
        elif rule == "keep":
            raise ValueError(
                f"stages.{stage.name}: {path} is {list(available[path].shape)} before and {list(leaf.shape)} "
                "in this stage; handover.exclude starts it from scratch"
            )
    return sources


def _fitted(stage, path, array, leaf):
    """The array, resized if it has another shape. Raises ValueError if it can't be resized."""
    if array.shape == leaf.shape:
        return array
    if isinstance(array, jax.Array):
        array = np.asarray(jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec())))
    else:  # a shape: only whether it can be resized
        array = np.zeros(array.shape, array.dtype)
    try:
        return initial.fitted(path, array, leaf.shape, build.encoder_modules(stage.config))
    except ValueError as error:
        raise ValueError(f"stages.{stage.name}: {error}; handover.exclude starts it from scratch") from error


def _copied(array):
    return jax.numpy.copy(array) if isinstance(array, jax.Array) else array


def _by_path(tree) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _placed(sources, tree):
    """The tree with the arrays of `sources` at their paths, on the tree's devices."""

    def place(path, leaf):
        source = sources.get(path_name(path))
        if source is None:
            return leaf
        if isinstance(source, np.ndarray):
            return initial.placed(source.astype(leaf.dtype), leaf.sharding)
        # A mesh of other sizes may order the devices differently, which a jitted function refuses.
        return jax.device_put(source, leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def _summary(handed_on, before, after):
    """A line that names the modules that start from scratch, and those that are left behind.

    Only process 0 calls it, so it must compute nothing on the devices, where the others would not take part.
    """
    places = _by_path(_weights(after))
    new = {initial.module(path) for path in places if path not in handed_on}
    dropped = {initial.module(path) for path in _by_path(_weights(before)) if path not in places}
    named = [("starts from scratch", new), ("is left behind", dropped)]
    lines = [f"{', '.join(sorted(modules))} {what}" for what, modules in named if modules]
    return "; ".join(lines) or "all weights are handed on"
