"""The schema of configs, and its check before anything slow happens."""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from big_ssl.config_ranges import broken_rules
from big_ssl.data import crops, decode, fields, preprocessing, sources
from big_ssl.data.masking import BlockMask
from big_ssl.data.sources import SourceConfig
from big_ssl.data.tokenizers import TOKENIZERS
from big_ssl.evals.capabilities import METHODS
from big_ssl.evals.suite import EVALUATORS
from big_ssl.models.encoders import ENCODERS
from big_ssl.models.layer_stack import REMAT_POLICIES
from big_ssl.objectives.build import OBJECTIVES
from big_ssl.training import lr_multipliers, schedules, stages
from big_ssl.training.optimizers import CLIPS, NAMES


class ConfigError(ValueError):
    """A config that can't be run; the message is one line that names the key."""


# Values are types or mappings of types. ANY: not checked here; validated by the builder that `kind` selects.
ANY = object()
NUMBER = (int, float)
SEQUENCE = (tuple, list)
_MESH = dict(data=int, fsdp=int, tensor=int)
SCHEMA: Mapping = dict(
    name=str,
    seed=int,
    total_steps=int,
    dtype=str,
    grad_accum=int,
    remat=str,
    mesh=_MESH,
    mesh_rules=SEQUENCE,
    sharding=SEQUENCE,
    requires=dict(weights=bool, preset_here=str),
    init_from=dict(path=str, exclude=SEQUENCE, remap=SEQUENCE),
    tokenizer=dict(kind=str, vocabulary=str, size=int, length=int),
    streams=ANY,
    eval_transform=dict(size=int, resize=int, resize_mode=str, filter=str, mean=SEQUENCE, std=SEQUENCE),
    encoders=ANY,
    optimizer=dict(
        name=str,
        b1=NUMBER,
        b2=NUMBER,
        eps=NUMBER,
        weight_decay=(int, float, Mapping),
        weight_decay_exclude=SEQUENCE,
        trust_ratio_exclude=SEQUENCE,
        clip_norm=NUMBER,
        clip_scope=str,
    ),
    learning_rate=ANY,
    lr_multipliers=SEQUENCE,
    ema=(int, float, Mapping),
    profile=int,
    log_every=int,
    eval_every=int,
    checkpoint=dict(every=int, keep=int, best=str),
    failure_limits=dict(
        skipped_in_a_row=int, replaced_fraction=NUMBER, window_examples=int, evaluator_failures_in_a_row=int
    ),
    evals=ANY,
    predictors=Mapping,
)
# The two kinds of learning-rate schedule, with all keys.
_WARMUP_SCHEDULE = dict(kind=str, peak=NUMBER, warmup_steps=int, start=NUMBER, final=NUMBER)
_STEPS = dict(kind=str, values=SEQUENCE)
_STREAM = dict(batch_size=int, data=ANY, objectives=ANY)
_DATA = dict(fields=ANY, cache_mib=NUMBER, threads=int)
_SOURCE = dict(source=ANY, weight=NUMBER, fields=ANY)


def validate(config: Mapping) -> None:
    """Raises ConfigError for an unknown or missing key (naming the nearest known one), a wrong
    type, or values that cannot go together."""
    _check_stages(config)
    config = {key: value for key, value in config.items() if key != "stages"}
    _check(config, SCHEMA, "")
    rate = config["learning_rate"]
    steps = isinstance(rate, Mapping) and rate.get("kind") == "steps"
    _check(rate, _STEPS if steps else _WARMUP_SCHEDULE, "learning_rate")
    streams_of: dict[str, str] = {}
    for name, stream in config["streams"].items():
        path = f"streams.{name}"
        _check(stream, _STREAM, path)
        _check_data(stream["data"], f"{path}.data", config["tokenizer"]["length"])
        for objective, options in stream["objectives"].items():
            _check_objective(options, config["total_steps"], f"{path}.objectives.{objective}")
            if streams_of.setdefault(objective, name) != name:
                raise ConfigError(
                    f"{path}.objectives.{objective}: streams.{streams_of[objective]} has an objective of "
                    "that name; names are unique in a run, a kind may be used any number of times"
                )
    for i, rule in enumerate(config["mesh_rules"]):
        _check_rule(rule, f"mesh_rules.{i}", "mesh sizes")
        _check(rule[1], _MESH, f"mesh_rules.{i}.1")
    for i, rule in enumerate(config["sharding"]):
        _check_rule(rule, f"sharding.{i}", "mesh axes")
        _check_type(rule[1], SEQUENCE, f"sharding.{i}.1")
    for i, rule in enumerate(config["init_from"]["remap"]):
        _check_rule(rule, f"init_from.remap.{i}", "its replacement, or a triple with a folder", sizes=(2, 3))
        for k, text in enumerate(rule[1:], 1):
            _check_type(text, str, f"init_from.remap.{i}.{k}")
    for i, rule in enumerate(config["lr_multipliers"]):
        _check_rule(rule, f"lr_multipliers.{i}", "a factor")
        _check_schedule(rule[1], config["total_steps"], f"lr_multipliers.{i}.1", lr_multipliers.build_factor)
    for name, encoder in config["encoders"].items():
        set_by_run = ("dtype", "remat", "vocab_size", "max_len")
        _check_choice(encoder, ENCODERS, f"encoders.{name}", set_by_run)
    for name, options in config["evals"].items():
        validate_evaluator(options, f"evals.{name}")
    _check_predictors(config["predictors"], streams_of)
    _check_values(config)


def _check_stages(config):
    """Validates the config of every stage."""
    if not config.get("stages"):
        return
    try:
        resolved = stages.resolve(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    for stage in resolved:
        try:
            validate(stage.config)
        except ConfigError as error:
            raise ConfigError(f"stages.{stage.name}: {error}") from error


def _check_predictors(predictors, objectives):
    """Checks {method: objective}; training.build.system checks it against the heads, once they are built."""
    for method, name in predictors.items():
        if method not in METHODS:
            raise ConfigError(f"predictors.{method} is no method{_nearest(method, METHODS)}")
        if name not in objectives:
            raise ConfigError(f"predictors.{method} is {name!r}, no objective{_nearest(name, objectives)}")


def validate_evaluator(options: Mapping, path: str) -> None:
    """Raises ConfigError, with keys under path, for invalid options of an evaluator: see evals.suite."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"{path} is {options!r}; it must be a dict of kind and its options")
    _check_choice(options, EVALUATORS, path)
    for key, option in _parameters(EVALUATORS[options["kind"]]).items():
        if option.annotation in (SourceConfig, SourceConfig | None) and options.get(key) is not None:
            _check_type(options[key], dict, f"{path}.{key}")
            validate_source(options[key], f"{path}.{key}")
    _check_ranges(options, path)


def validate_source(options: Mapping, path: str) -> None:
    """Raises ConfigError, with keys under path, for invalid options of a source: see data.sources."""
    _check_choice(options, sources.SOURCES, path)
    try:
        decode.Options(options.get("orientation", ""), options.get("alpha", ""))
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from error


def _check_objective(options, total_steps, path):
    """Checks a kind with its options, and the weight that the step applies."""
    if "weight" not in options:
        raise ConfigError(f"{path}.weight is missing; it must be a number or a schedule")
    _check_choice({key: value for key, value in options.items() if key != "weight"}, OBJECTIVES, path)
    _check_schedule(options["weight"], total_steps, f"{path}.weight")


def _check_data(data, path, length):
    """Checks a stream's source, or its mixture of sources, and its fields."""
    mixture = isinstance(data, Mapping) and "sources" in data
    _check(data, _DATA | (dict(sources=SEQUENCE) if mixture else dict(source=ANY)), path)
    for i, entry in enumerate(data.get("sources", ())):
        _check_type(entry, dict, f"{path}.sources.{i}")
        _check_keys(entry, _SOURCE, ("source", "weight"), f"{path}.sources.{i}")
        _check_type(entry["weight"], NUMBER, f"{path}.sources.{i}.weight")
        if entry["weight"] <= 0:
            raise ConfigError(f"{path}.sources.{i}.weight is {entry['weight']}; it must be above 0")
        _check_keys(entry.get("fields", {}), data["fields"], (), f"{path}.sources.{i}.fields")
    if mixture and not data["sources"]:
        raise ConfigError(f"{path}.sources is empty; it must have a source at least")
    for entry in sources.entries(data):
        validate_source(entry.source, f"{path}.{entry.path}")
        for name, options in entry.fields.items():
            _check_field(options, f"{path}.{entry.fields_path}.{name}")
        try:
            fields.build(entry.fields, length)
        except ValueError as error:
            raise ConfigError(f"{path}.{error}") from error


def _check_field(options, path):
    """Checks the options of a field's kind, and those of an image's crop and mask."""
    _check_choice(options, fields.KINDS, path)
    if options["kind"] == "image":
        _check_choice(options["crop"], crops.CROPS, f"{path}.crop")
        if options.get("mask") is not None:
            _check_options(options["mask"], BlockMask, f"{path}.mask")
    for key, weight in options.get("captions", {}).items():
        _check_type(weight, NUMBER, f"{path}.captions.{key}")


# (pattern of the path of a subtree with a `kind`, the table from which it selects).
_CHOICES = (
    (re.compile(r"streams\.[^.]+\.data\.(sources\.\d+\.)?source|evals\.[^.]+\.[^.]+"), sources.SOURCES),
    (re.compile(r"streams\.[^.]+\.data\.fields\.[^.]+"), fields.KINDS),
    (re.compile(r"streams\.[^.]+\.data\.fields\.[^.]+\.crop"), crops.CROPS),
    (re.compile(r"streams\.[^.]+\.objectives\.[^.]+"), OBJECTIVES),
    (re.compile(r"encoders\.[^.]+"), ENCODERS),
    (re.compile(r"evals\.[^.]+"), EVALUATORS),
)


def known_options(path: str, kind: str) -> dict[str, Any] | None:
    """{option: its type} of a config's subtree at this path, if it is of this kind; None without a table for
    the path and the kind."""
    table = next((table for pattern, table in _CHOICES if pattern.fullmatch(path)), {})
    if kind not in table:
        return None
    return {key: option.annotation for key, option in _parameters(table[kind]).items()}


def _check_rule(rule, path, what, sizes=(2,)):
    """Checks a tuple of a regular expression and its values, of one of these sizes."""
    if not isinstance(rule, SEQUENCE) or len(rule) not in sizes or not isinstance(rule[0], str):
        raise ConfigError(f"{path} is {rule!r}; it must be a pair of a pattern and {what}")
    try:
        re.compile(rule[0])
    except re.error as error:
        raise ConfigError(f"{path}: the pattern {rule[0]!r} is not a regular expression: {error}") from error


def _check_values(config):
    _check_ranges(config, "")
    if config["dtype"] not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype is {config['dtype']!r}; use float32 or bfloat16")
    if config["remat"] not in REMAT_POLICIES:
        raise ConfigError(f"remat is {config['remat']!r}; use {', '.join(REMAT_POLICIES)}")
    transform = config["eval_transform"]
    for key, known in (("resize_mode", crops.RESIZE_MODES), ("filter", tuple(preprocessing.FILTERS))):
        if transform[key] not in known:
            raise ConfigError(f"eval_transform.{key} is {transform[key]!r}; use {', '.join(known)}")
    if transform["size"] > transform["resize"]:
        raise ConfigError(
            f"eval_transform.size is {transform['size']}; it must be at most resize, {transform['resize']}"
        )
    if config["optimizer"]["name"] not in NAMES:
        raise ConfigError(f"optimizer.name is {config['optimizer']['name']!r}; use {', '.join(NAMES)}")
    if config["optimizer"]["clip_scope"] not in CLIPS:
        raise ConfigError(
            f"optimizer.clip_scope is {config['optimizer']['clip_scope']!r}; use {', '.join(CLIPS)}"
        )
    if config["tokenizer"]["kind"] not in TOKENIZERS:
        raise ConfigError(f"tokenizer.kind is {config['tokenizer']['kind']!r}; use {', '.join(TOKENIZERS)}")
    _check_schedule(config["ema"], config["total_steps"], "ema", schedules.ema_momentum)
    _check_schedule(config["learning_rate"], config["total_steps"], "learning_rate")
    _check_schedule(config["optimizer"]["weight_decay"], config["total_steps"], "optimizer.weight_decay")


def _check_schedule(value, total_steps, path, build=schedules.build):
    try:
        build(value, total_steps)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_ranges(value, path):
    """Raises ConfigError for the first number out of range."""
    for line in broken_rules(value, path):
        raise ConfigError(line)


def _check(value, schema, path):
    """Checks a value against a type, a tuple of types, or a mapping of these."""
    if schema is ANY:
        return
    if not isinstance(schema, Mapping):
        _check_type(value, schema, path)
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r}; it must be a dict of {', '.join(schema)}")
    _check_keys(value, schema, schema, path)
    for key in schema:
        _check(value[key], schema[key], f"{path}.{key}".lstrip("."))


def _check_type(value, types, path):
    types = types if isinstance(types, tuple) else (types,)
    # bool is an int to Python, and never meant as one here.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        names = " or ".join(t.__name__ for t in types)
        raise ConfigError(f"{path} is {value!r}, of type {type(value).__name__}; it must be {names}")


def _check_keys(value, known, required, path):
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in known:
            raise ConfigError(f"{prefix}{key} is no known key{_nearest(key, known)}")
    for key in required:
        if key not in value:
            raise ConfigError(f"{prefix}{key} is missing")


def _check_choice(value, table, path, set_by_run=()):
    """Checks a subtree whose `kind` names an entry of table; the other keys are its options."""
    if "kind" not in value:
        raise ConfigError(f"{path}.kind is missing; it must be one of {', '.join(table)}")
    options = {key: value[key] for key in value if key != "kind"}
    _check_options(options, _choose(value["kind"], table, f"{path}.kind"), path, set_by_run)


def _choose(kind, table, path):
    if kind not in table:
        raise ConfigError(f"{path}: {kind!r} is unknown{_nearest(kind, table)}; there are {', '.join(table)}")
    return table[kind]


def _check_options(options, build, path, set_by_run=()):
    """Checks options against the parameters of `build`, without those in `set_by_run`."""
    known = {key: parameter for key, parameter in _parameters(build).items() if key not in set_by_run}
    _check_keys(options, known, [key for key, p in known.items() if p.default is _REQUIRED], path)
    for key, value in options.items():
        types = _PLAIN.get(known[key].annotation)
        if types:
            _check_type(value, types, f"{path}.{key}")


_REQUIRED = inspect.Parameter.empty
_PLAIN = {int: int, float: NUMBER, bool: bool, str: str}


class _Option(NamedTuple):
    default: Any
    annotation: Any


def _parameters(build) -> dict[str, _Option]:
    """{name: option} of the parameters of `build` that a config may set; with **options also the fields of
    its return type.

    The run, not the config, passes keyword-only parameters.
    """
    all_parameters = inspect.signature(build, eval_str=True).parameters
    parameters = {k: p for k, p in all_parameters.items() if p.kind is not p.KEYWORD_ONLY}
    known = {
        k: _Option(p.default, p.annotation) for k, p in parameters.items() if p.kind is not p.VAR_KEYWORD
    }
    if len(known) < len(parameters):
        return_type = inspect.signature(build, eval_str=True).return_annotation
        fields = dataclasses.fields(return_type)
        known |= {f.name: _Option(None, f.type) for f in fields if f.name not in ("parent", "name", "stages")}
    known.pop("parent", None)
    known.pop("name", None) if dataclasses.is_dataclass(build) else None
    return known


def _nearest(key, known):
    close = difflib.get_close_matches(str(key), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
