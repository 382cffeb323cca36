"""The batches of a run: their shapes before there are any, and their iterator."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from big_ssl.data import host_views, pipeline
from big_ssl.data.pipeline import LoadExample
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import streams


def abstract_batch(config: Mapping) -> dict:
    """Zeros of the shapes of one example of every stream, to initialise the parameters with."""
    return {name: _example(streams.loaded_data(name, config), config) for name in config["streams"]}


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
    """Shapes and dtypes of a global batch as `iterate` gives it, each array with this sharding."""

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


def iterate(config: Mapping, loaders: Mapping[str, LoadExample], start: int, mesh: Mesh):
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
