"""From a config to the parts of a run."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from big_ssl.data import host_views, pipeline, tokenizers
from big_ssl.data.device_views import ImageView
from big_ssl.data.masking import BlockMask
from big_ssl.data.pipeline import LoadExample
from big_ssl.data.tokenizers import Tokenizer
from big_ssl.models import encoders
from big_ssl.objectives import build as objectives
from big_ssl.objectives.base import Context
from big_ssl.parallel import mesh as mesh_lib
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


def loaded_data(stream: str, config: Mapping) -> dict:
    """A stream's `data` config with only those views that an objective reads: "image", say, may be there
    for evaluation alone. And `label`, the kind of label that the option `label` of an objective asks for,
    "" for none. Raises ValueError where two ask for different ones."""
    parts = config["streams"][stream]
    read = {call.view for _, term in _terms(stream, parts, config, None) for call in term.calls.values()}
    views = {name: view for name, view in parts["data"]["views"].items() if name in read}
    captions = parts["data"]["captions"] if "text" in read else {}
    labels = {options["label"] for options in parts["objectives"].values() if "label" in options}
    if len(labels) > 1:
        raise ValueError(f"streams.{stream}: its objectives ask for more than one label: {sorted(labels)}")
    return dict(parts["data"], views=views, captions=captions, label="".join(labels))


def preparation(data: Mapping) -> dict:
    """How a stream's images are prepared outside of training, in the keys of a weights.format.ModelConfig:
    as the view "image" prepares them, but the middle of each instead of a random part."""
    window = data["views"]["image"]
    return dict(image_size=window["crop"], resize=f"{window['fit']} {window['resize']}")


def abstract_batch(config: Mapping) -> dict:
    """Zeros of the shapes of one example of every stream, to initialise the parameters with."""
    return {name: _example(loaded_data(name, config), config) for name in config["streams"]}


def _example(data, config):
    views = host_views.build(data["views"])
    example: dict = {name: np.zeros((1, *view.shape), np.uint8) for name, view in views.items()}
    if data["captions"]:
        length = config["tokenizer"]["length"]
        example["text"] = dict(ids=np.zeros((1, length), np.int32), mask=np.ones((1, length), bool))
    if data["label"]:
        example["label"] = np.zeros(1, np.int32)
    return example


def abstract_global_batch(config: Mapping, sharding) -> dict:
    """Shapes and dtypes of a global batch as `batches` gives it, each array with this sharding."""

    def place(size, leaf):
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype, sharding=sharding)

    data_errors = {name: np.zeros(1, bool) for name in pipeline.DATA_ERRORS}
    return {
        name: jax.tree.map(
            functools.partial(place, config["streams"][name]["batch_size"]),
            views | dict(data_errors=data_errors),
        )
        for name, views in abstract_batch(config).items()
    }


def loaders(config: Mapping, tokens: Tokenizer | None) -> dict[str, LoadExample]:
    """{stream: the loader of its records}, unchecked; training.streams checks them as well."""
    return {name: pipeline.build(loaded_data(name, config), tokens) for name in config["streams"]}


def batches(config: Mapping, loaders: Mapping[str, LoadExample], start: int, mesh: Mesh):
    """An endless iterator of {stream: batch}, NumPy, this process's rows, from step `start`."""
    iterators = {
        name: pipeline.batches(
            loaders[name],
            len(loaders[name].source),
            stream["batch_size"],
            config["seed"],
            start,
            stream["data"]["threads"],
            mesh_lib.local_rows(mesh, stream["batch_size"]),
        )
        for name, stream in config["streams"].items()
    }
    try:
        while True:
            yield {name: next(iterator) for name, iterator in iterators.items()}
    finally:
        # Grain's prefetching threads keep a process alive that an exception is trying to end.
        for iterator in iterators.values():
            iterator.close()
