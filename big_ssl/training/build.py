"""From a config to the parts of a run."""

import functools
from collections.abc import Mapping

from jax.sharding import Mesh

from big_ssl.data import tokenizers
from big_ssl.data.device_views import ImageView
from big_ssl.data.masking import BlockMask
from big_ssl.data.tokenizers import Tokenizer
from big_ssl.models import encoders
from big_ssl.objectives import build as objectives
from big_ssl.objectives.base import Context
from big_ssl.training import schedules
from big_ssl.training.system import System, Term


def tokenizer(config: Mapping) -> Tokenizer | None:
    """The tokenizer of the config's texts; None where no vocabulary is set, enough to plan a run.

    Raises ValueError where the vocabulary is not of the size that the config states.
    """
    return tokenizers.build(config["tokenizer"]) if config["tokenizer"]["vocabulary"] else None


def system(config: Mapping, mesh: Mesh) -> System:
    """The encoders, views and weighted terms of the config, for batches split over mesh."""
    length, vocab_size = config["tokenizer"]["length"], config["tokenizer"]["size"]
    towers = {
        name: encoders.build(options, config["dtype"], vocab_size, length, config["remat"])
        for name, options in config["encoders"].items()
    }
    views = {name: ImageView(**options) for name, options in config["views"].items()}
    masks = {name: BlockMask(**options) for name, options in config["masks"].items()}
    terms = {
        name: term
        for stream, parts in config["streams"].items()
        for name, term in _terms(stream, parts, config, mesh)
    }
    for name, term in terms.items():
        for call in term.calls.values():
            _check_call(name, call, views, masks)
    return System(towers, views, terms, masks)


def providers(config: Mapping) -> dict[str, str]:
    """{method of a predictor: the objective whose head provides it, "" for none}, see System.provider."""
    terms = {
        name: term
        for stream, parts in config["streams"].items()
        for name, term in _terms(stream, parts, config, None)
    }
    made = System({}, {}, terms)
    return {method: made.provider(method) for method in ("encode_image", "encode_text", "classify")}


def _check_call(name, call, views, masks):
    shrink = views[call.view].shrink if call.view in views else 1
    if call.masked and call.view not in masks:
        raise ValueError(f"{name} reads {call.view} masked; masks.{call.view} is missing")
    if call.high_res and shrink < 2:
        raise ValueError(f"{name} reads {call.view} high_res; views.{call.view}.shrink must be at least 2")
    if call.view == "image" and shrink > 1:
        raise ValueError("views.image.shrink must be 1: evaluation shows pictures as they are")


def _terms(stream, parts, config, mesh):
    """Yields (name, Term) of every objective of a stream."""
    schedule = functools.partial(schedules.build, total_steps=config["total_steps"])
    heads = {name: options.get("head") for name, options in parts["objectives"].items()}
    context = Context(mesh, config["dtype"], schedule, heads)
    for name, options in parts["objectives"].items():
        yield name, Term(stream, objectives.build(options, context), schedule(options["weight"]))
