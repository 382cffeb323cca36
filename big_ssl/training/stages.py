"""The stages of a run: changes of the config from one to the next, and rules for handing over the state.

`config.stages` lists them in order:

    stages=(
        dict(name="low_res", steps=9_000),
        dict(name="high_res", steps=1_000, handover=dict(optimizer="reset"),
             encoders=dict(image=dict(image_size=448)), streams=...),
    )

Beside `name`, `steps` and `handover`, a stage contains changes to the config: mappings are merged, other
values replace, and None removes a mapping. Schedules count the steps of a stage, and so end with it; metrics
and checkpoints count those of the run. The data order is a function of (seed, stage, step). Without `stages`
a run is one stage. `init_from` fills the first stage.

A stage after the first starts from the final state of the previous one, by four rules of `handover`:

    params, ema          "resize" (default), "keep" or "reset"
    optimizer, objectives   "keep" (default) or "reset"; the latter are objectives' states, such as centers

"keep" hands on every array whose path and shape are the same; a path that is new starts from scratch; for an
array of another shape it is an error, except that an optimizer's moments restart. "resize" also resizes what
an encoder can resize, such as position embeddings. "reset" starts from scratch; an EMA restarts at the
weights. `exclude` lists patterns of paths ("heads/dino/") that always start from scratch. `remap` lists pairs
(pattern, replacement): arrays also fill the replaced path, so that an encoder can become a frozen teacher.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

# Config keys that no stage can change.
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
        """The last step of the stage, counted in the run."""
        return self.start + self.config["total_steps"]

    @property
    def data_seed(self) -> int:
        """The seed of its data order; the first stage's is the run's."""
        seed = self.config["seed"]
        return int(np.random.SeedSequence([seed, self.index]).generate_state(1)[0]) if self.index else seed


def resolve(config: Mapping) -> list[Stage]:
    """The stages of a config, in order.

    Raises ValueError, naming the stage, for options that no stage can have, and if the stages' steps do not
    add up to the run's.
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


def named(stages: Sequence[Stage], name: str) -> Stage:
    """The stage of this name; "" is the first. Raises ValueError, listing them, for another name."""
    for stage in stages:
        if name in (stage.name, ""):
            return stage
    names = ", ".join(stage.name for stage in stages if stage.name) or "none"
    raise ValueError(f"stage is {name!r}; the config has {names}")


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
