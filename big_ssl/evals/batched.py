"""Applies compiled functions to any number of examples, in batches sharded over the mesh."""

import functools
import operator

import jax
import numpy as np

from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated


def sharded(function, mesh):
    """Compiles a function of (variables, batch) for batches split over the mesh.

    Every host gets the whole result.
    """
    return jax.jit(fsdp.within(mesh, function), out_shardings=replicated(mesh))


def in_batches(function, mesh, inputs, size: int):
    """Applies a compiled function batch by batch.

    The last batch is padded by repeating its first row, and the padding is cut off again, so that all batches
    share one compilation.

    Args:
      function: batch -> an array or a tree of arrays [size, ...].
      mesh: batches are split over it.
      inputs: an array or a tree of arrays [N, ...]; or a batch that is on the devices, see evals.reading.
      size: of a batch, rounded up to a multiple of the mesh's batch shards.

    Returns:
      float32[N, ...], an array or such a tree.
    """
    if isinstance(inputs, jax.Array):
        return _on_host(function(inputs))
    shards, total, results = mesh_lib.batch_shards(mesh), len(jax.tree.leaves(inputs)[0]), []
    size = -(-size // shards) * shards
    for start in range(0, total, size):
        part = jax.tree.map(functools.partial(_padded_slice, start=start, size=size), inputs)
        result = _on_host(function(mesh_lib.from_every_host(mesh, part)))
        results.append(jax.tree.map(operator.itemgetter(slice(total - start)), result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def by_shape(function, arrays: list[np.ndarray]) -> list:
    """Applies a function to the arrays of each shape, stacked: [N, ...] -> [N, ...]; the results in their
    order."""
    results: dict[int, np.ndarray] = {}
    for shape in dict.fromkeys(x.shape for x in arrays):
        indices = [i for i, x in enumerate(arrays) if x.shape == shape]
        results |= dict(zip(indices, function(np.stack([arrays[i] for i in indices])), strict=True))
    return [results[i] for i in range(len(arrays))]


def _on_host(outputs):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), outputs)


def _padded_slice(array, start, size):
    part = array[start : start + size]
    return np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
