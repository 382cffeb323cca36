"""Builds the parts of a run from its config."""

import functools
from collections.abc import Mapping

from jax.sharding import Mesh

from big_ssl.data import fields, preprocessing, tokenizers
from big_ssl.data.fields import Field, Image
from big_ssl.data.tokenizers import Tokenizer
from big_ssl.evals.capabilities import image_call, listed
from big_ssl.models import encoders
from big_ssl.models.encoder import Encoder
from big_ssl.objectives import build as objectives
from big_ssl.objectives.base import BatchField, Context
from big_ssl.training import schedules
from big_ssl.training.system import System, Term


def tokenizer(config: Mapping) -> Tokenizer | None:
    """The tokenizer of the config; None if no vocabulary is set, which suffices to plan a run.

    Raises ValueError if the vocabulary does not have the size that the config states.
    """
    return tokenizers.build(config["tokenizer"]) if config["tokenizer"]["vocabulary"] else None


def system(config: Mapping, mesh: Mesh | None) -> System:
    """The encoders, fields and weighted terms of the config, for batches split over mesh.

    mesh: None for a system without losses. Raises ValueError for encoder calls that do not fit the encoders
    and fields.
    """
    modules = encoder_modules(config)
    terms = {
        name: term
        for stream, parts in config["streams"].items()
        for name, term in _terms(stream, parts, config, mesh)
    }
    read = {stream: stream_fields(stream, config) for stream in config["streams"]}
    for name, term in terms.items():
        for call in term.calls.values():
            _check_encoder_call(name, call, modules)
            field, encoder = read[term.stream][call.view], modules[call.encoder]
            _check_call(f"streams.{term.stream}", name, call, field, encoder)
    pixels = preprocessing.Pixels.of(config["eval_transform"])
    system = System(modules, read, terms, pixels, predictors=config["predictors"])
    _check_predictors(system)
    _check_eval_channels(system, config["eval_transform"])
    return system


def _check_eval_channels(system, transform):
    """Raises ValueError if eval_transform is not for the channels of the encoder that evaluation reads."""
    call = image_call(system)
    channels = 3 if call is None else system.encoders[call.encoder].channels
    for key in ("mean", "std"):
        if len(values := transform[key]) not in (1, channels):
            raise ValueError(
                f"eval_transform.{key} is {tuple(values)}; encoders.{call.encoder} reads {channels} channels"
            )


def stream_fields(
    stream: str, config: Mapping, options: Mapping[str, Mapping] | None = None
) -> dict[str, Field]:
    """The fields of a stream's batches: those that its objectives read, and the images and texts that these
    belong to, in the order of the config; not opened yet.

    Args:
      stream: the stream's name.
      config: the run's config.
      options: {field: options} in place of the config's, for one of several sources.

    Raises:
      ValueError: if an objective reads a field that does not exist.
    """
    parts = config["streams"][stream]
    known = fields.build(options or parts["data"]["fields"], config["tokenizer"]["length"])
    read = set()
    for name, term in _terms(stream, parts, config, None):
        for field in term.field_names:
            if field not in known:
                raise ValueError(
                    f"streams.{stream}.objectives.{name} reads the field {field!r}; "
                    f"streams.{stream}.data.fields has {', '.join(known)}"
                )
            read |= {field, known[field].image_field(), known[field].text_field()}
    return {name: field for name, field in known.items() if name in read}


def batch_fields(stream: str, config: Mapping) -> dict[str, list[str]]:
    """{objective of the stream: the fields of the batch that its loss reads itself}."""
    terms = _terms(stream, config["streams"][stream], config, None)
    return {
        name: [x.name for x in term.objective.inputs.values() if isinstance(x, BatchField)]
        for name, term in terms
    }


def reads_texts(config: Mapping) -> bool:
    """Whether a field of some stream needs a tokenizer."""
    fields = (field for name in config["streams"] for field in stream_fields(name, config).values())
    return any(field.needs_tokenizer for field in fields)


def encoder_modules(config: Mapping) -> dict[str, Encoder]:
    """{name: module} of config.encoders."""
    length, vocab_size = config["tokenizer"]["length"], config["tokenizer"]["size"]
    return {
        name: encoders.build(options, config["dtype"], vocab_size, length, config["remat"])
        for name, options in config["encoders"].items()
    }


def _check_predictors(system):
    """Raises ValueError unless config.predictors decides which objective provides each method."""
    provided = {method for term in system.terms.values() for method in term.objective.provides}
    for method, name in system.predictors.items():
        providers = [n for n, term in system.terms.items() if method in term.objective.provides]
        if name not in providers:
            raise ValueError(
                f"predictors.{method} is {name!r}; the objectives that provide it: {listed(providers)}"
            )
    for method in sorted(provided):
        system.provider(method)


def _check_call(path, name, call, field, encoder):
    key = f"{path}.data.fields.{call.view}"
    if isinstance(field, Image) and field.channels != encoder.channels:
        raise ValueError(
            f"{key}.channels is {field.channels}; encoders.{call.encoder}.channels is {encoder.channels}"
        )
    if call.masked and not (isinstance(field, Image) and field.mask):
        raise ValueError(f"{name} reads {call.view} masked; {key}.mask is missing")
    if call.high_res and not (isinstance(field, Image) and field.downsample > 1):
        raise ValueError(f"{name} reads {call.view} high_res; {key}.downsample must be at least 2")


def _check_encoder_call(name, call, modules):
    if call.encoder not in modules:
        raise ValueError(f"{name} reads encoders.{call.encoder}, which is missing; there are {list(modules)}")
    encoder = modules[call.encoder]
    for output in call.outputs:
        if output not in encoder.outputs:
            raise ValueError(
                f"{name} reads {output} of encoders.{call.encoder}, a {type(encoder).__name__}; "
                f"its outputs are {', '.join(encoder.outputs)}"
            )
    if bool(call.layers) != ("layers" in call.outputs):
        raise ValueError(f"{name} reads {call.outputs} and layers {call.layers}: these need each other")
    for layer in call.layers:
        if not -encoder.num_layers <= layer < encoder.num_layers:
            raise ValueError(
                f"{name} reads layer {layer} of encoders.{call.encoder}, which has {encoder.num_layers}"
            )


def _terms(stream, parts, config, mesh):
    """Yields (name, Term) of every objective of a stream."""
    schedule = functools.partial(schedules.build, total_steps=config["total_steps"])
    heads = {name: options.get("head") for name, options in parts["objectives"].items()}
    context = Context(mesh, config["dtype"], schedule, heads, encoder_modules(config))
    for name, options in parts["objectives"].items():
        yield name, Term(stream, objectives.build(options, context), schedule(options["weight"]))
