"""The batches of a run: their shapes before the data is read, and their iterator."""

import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from big_ssl.data import pipeline
from big_ssl.data.pipeline import Part
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import build


def abstract_batch(config: Mapping) -> dict:
    """{stream: {field: zeros of one example}}, to initialise the parameters with."""
    return {
        name: jax.tree.map(lambda x: np.asarray(x)[None], pipeline.zeros(build.stream_fields(name, config)))
        for name in config["streams"]
    }


def abstract_global_batch(config: Mapping, sharding) -> dict:
    """Shapes and dtypes of a global batch of `iterate`, each array with this sharding."""

    def place(size, leaf):
        return jax.ShapeDtypeStruct((size, *np.shape(leaf)), np.asarray(leaf).dtype, sharding=sharding)

    batch = {}
    for name, stream in config["streams"].items():
        fields = build.stream_fields(name, config)
        example = pipeline.zeros(fields) | dict(data_errors=pipeline.data_errors(fields))
        batch[name] = jax.tree.map(functools.partial(place, stream["batch_size"]), example)
    return batch


def iterate(config: Mapping, parts: Mapping[str, Sequence[Part]], start: int, mesh: Mesh):
    """An endless iterator of {stream: batch}, NumPy, with this process's rows.

    Args:
      config: of a run or a stage.
      parts: {stream: its sources}, from streams.open_streams.
      start: the step of the first batch.
      mesh: global batches are split over it.
    """
    iterators = {
        name: pipeline.batches(
            parts[name],
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
