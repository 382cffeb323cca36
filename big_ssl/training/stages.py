"""The stages of a run: what changes from one to the next, and what is handed on.

`config.stages` lists them in order:

    stages=(
        dict(name="low_res", steps=9_000),
        dict(name="high_res", steps=1_000, handover=dict(optimizer="reset"),
             encoders=dict(image=dict(image_size=448)), streams=...),
    )

Beside `name`, `steps` and `handover`, a stage holds changes to the config: mappings are merged, other values
replace, and None removes a mapping. Schedules count a stage's own steps, and so end with it; metrics and
checkpoints count the run's. The data order is a function of (seed, stage, step). Without `stages` a run is
one stage. `init_from` fills the first stage.

A stage after the first starts from the state that the one before ended with, by four rules of `handover`:

    params, ema          "resize" (default), "keep" or "reset"
    optimizer, objectives   "keep" (default) or "reset"; the latter are objectives' states, such as centers

"keep" hands on every array whose path and shape are the same; a path that is new starts from scratch; for an
array of another shape it is an error, except that an optimizer's moments restart. "resize" also resizes what
an encoder can resize, such as position embeddings. "reset" starts from scratch; an average restarts at the
weights. `exclude` lists patterns of paths ("heads/dino/") that start from scratch all the same, `remap` pairs
(pattern, replacement): arrays fill that place as well, so that an encoder can become a frozen teacher.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.parallel.sharding import path_name
from big_ssl.training import initial
from big_ssl.training import state as state_lib
from big_ssl.training.state import TrainState

# What belongs to the run as a whole.
_OF_THE_RUN = ("name", "seed", "total_steps", "stages", "checkpoint", "init_from", "profile")
_RULES = dict(
    params=("resize", "keep", "reset"),
    ema=("resize", "keep", "reset"),
    optimizer=("keep", "reset"),
    objectives=("keep", "reset"),
)


@dataclasses.dataclass(frozen=True)
class Handover:
    """See the top of this file."""

    params: str = "resize"
    ema: str = "resize"
    optimizer: str = "keep"
    objectives: str = "keep"
    exclude: Sequence[str] = ()
    remap: Sequence[tuple[str, str]] = ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    index: its number, from 0. name: its name, "" for a run without stages. start: how many steps of the run
    come before it. config: the run's config with the stage's changes; its total_steps are the stage's own.
    """

    index: int
    name: str
    start: int
    config: dict
    handover: Handover

    @property
    def end(self) -> int:
        """The step of the run that is its last."""
        return self.start + self.config["total_steps"]

    @property
    def data_seed(self) -> int:
        """The seed of its data order; the first stage's is the run's."""
        seed = self.config["seed"]
        return int(np.random.SeedSequence([seed, self.index]).generate_state(1)[0]) if self.index else seed


def resolve(config: Mapping) -> list[Stage]:
    """The stages of a config, in order.

    Raises ValueError, naming the stage, for what no stage can have, and where the steps of all are not those
    of the run.
    """
    listed, whole = config.get("stages", ()), {key: config[key] for key in config if key != "stages"}
    if not listed:
        return [Stage(0, "", 0, whole, Handover())]
    stages: list[Stage] = []
    for index, options in enumerate(listed):
        name, steps = _name_and_steps(options, f"stages.{index}", [stage.name for stage in stages])
        changes = {key: value for key, value in options.items() if key not in ("name", "steps", "handover")}
        for key in changes:
            if key in _OF_THE_RUN:
                raise ValueError(f"stages.{name}.{key}: no stage can change it; it is the run's")
        start = stages[-1].end if stages else 0
        changed = _merged(whole, changes) | dict(total_steps=steps)
        handover = _handover(options.get("handover", {}), f"stages.{name}.handover")
        stages.append(Stage(index, name, start, changed, handover))
    if stages[-1].end != config["total_steps"]:
        raise ValueError(f"total_steps is {config['total_steps']}; the stages have {stages[-1].end} in all")
    return stages


def at_step(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that took a step of the run; the first for step 0. Raises ValueError beyond the last."""
    for stage in stages:
        if step <= stage.end:
            return stage
    raise ValueError(f"step {step} is beyond the last stage, which ends with {stages[-1].end}")


def _name_and_steps(options, path, before):
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str) or not options["name"]:
        raise ValueError(f"{path} is {options!r}; it must be a dict with a name, steps and changes")
    name, steps = options["name"], options.get("steps")
    if name in before:
        raise ValueError(f"{path}.name is {name!r}, as of an earlier stage")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"stages.{name}.steps is {steps!r}; it must be an int of at least 1")
    return name, steps


def _handover(options, path):
    known = {field.name for field in dataclasses.fields(Handover)}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{path}.{key} is no known key; there are {', '.join(sorted(known))}")
        if key in _RULES and value not in _RULES[key]:
            raise ValueError(f"{path}.{key} is {value!r}; use {', '.join(_RULES[key])}")
    return Handover(**options)


def _merged(config, changes):
    """The config with changes: mappings merged, None for a mapping removing it, other values replaced."""
    merged = dict(config)
    for key, value in changes.items():
        if isinstance(merged.get(key), Mapping) and value is None:
            del merged[key]
        elif isinstance(merged.get(key), Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def check_handover(stage: Stage, before: TrainState, after: TrainState) -> None:
    """Raises ValueError, naming the array, where a stage can't start from the state of the one before.

    before, after: shapes and dtypes of both stages' states.
    """
    _weight_sources(stage, before, after)
    _sources(stage, stage.handover.objectives, before.mutable["objectives"], after.mutable["objectives"])
    if before.ema is not None and after.ema is not None:
        _sources(stage, stage.handover.ema, before.ema, after.ema)


def hand_over(stage: Stage, before: TrainState, after: TrainState) -> TrainState:
    """The state that a stage starts with.

    before: the state that the stage before ended with. after: this stage's own initial state, which is filled
    by the rules; each array stays on the devices where it lies.
    """
    weights = _placed(_weight_sources(stage, before, after), _weights(after))
    states = after.mutable["objectives"]
    states = _placed(_sources(stage, stage.handover.objectives, before.mutable["objectives"], states), states)
    optimizer = "moments" if stage.handover.optimizer == "keep" else "reset"
    moments = _sources(stage, optimizer, before.opt_state, after.opt_state)
    fractions = {k: before.replaced_fraction.get(k, x) for k, x in after.replaced_fraction.items()}
    if jax.process_index() == 0:
        print(f"stage {stage.name}: {_summary(stage, before, after)}", flush=True)
    return after.replace(
        step=before.step,
        params=weights["params"],
        opt_state=_placed(moments, after.opt_state),
        mutable=dict(encoders=weights["encoders"], objectives=states),
        ema=_average(stage, before, after, weights),
        counters=before.counters,
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
    """The average: handed on, or where there is none to hand on, starting at the weights."""
    if after.ema is None:
        return None
    rule = stage.handover.ema if before.ema is not None else "reset"
    sources = _sources(stage, rule, before.ema, after.ema)
    started = {path: _copied(x) for path, x in _by_path(weights).items() if path not in sources}
    return _placed(started | sources, after.ema)


def _sources(stage, rule, before, after):
    """{path: array} of what is handed on in one part of the state.

    rule: of the handover, or "moments": those of another shape restart.
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
    """The array, resized if its shape is another one. Raises ValueError if that can't be."""
    if array.shape == leaf.shape:
        return array
    if isinstance(array, jax.Array):
        whole = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        array = np.asarray(jax.jit(lambda x: x, out_shardings=whole)(array))
    else:  # a shape: only whether it can be resized
        array = np.zeros(array.shape, array.dtype)
    try:
        return initial.fitted(path, array, leaf.shape, stage.config["encoders"])
    except ValueError as error:
        raise ValueError(f"stages.{stage.name}: {error}; handover.exclude starts it from scratch") from error


def _copied(array):
    return jax.numpy.copy(array) if isinstance(array, jax.Array) else array


def _by_path(tree) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _placed(sources, tree):
    """The tree with the arrays of `sources` in it, on the tree's devices."""

    def place(path, leaf):
        source = sources.get(path_name(path))
        if source is None:
            return leaf
        if isinstance(source, np.ndarray):
            return initial.placed(source.astype(leaf.dtype), leaf.sharding)
        if source.sharding == leaf.sharding:
            return source
        return jax.jit(lambda x: x, out_shardings=leaf.sharding)(source)

    return jax.tree_util.tree_map_with_path(place, tree)


def _summary(stage, before, after):
    """Which modules start from scratch, and which are left behind."""
    handed_on, places = _weight_sources(stage, before, after), _by_path(_weights(after))
    new = {initial.module(path) for path in places if path not in handed_on}
    dropped = {initial.module(path) for path in _by_path(_weights(before)) if path not in places}
    named = [("starts from scratch", new), ("is left behind", dropped)]
    lines = [f"{', '.join(sorted(modules))} {what}" for what, modules in named if modules]
    return "; ".join(lines) or "all weights are handed on"
