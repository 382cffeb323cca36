"""Embeddings of many pictures or texts, in batches sharded over the mesh."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated


class Embedder:
    """Runs one term's towers over arrays of any length; compiled once for each tower.

    The last batch is padded by repeating its first row, and the padding cut off again.
    """

    def __init__(self, system, term: str, tokenizer, mesh, batch_size: int = 256):
        ways = mesh_lib.batch_ways(mesh)
        self._batch = -(-batch_size // ways) * ways
        self._mesh, self._tokenizer = mesh, tokenizer
        # Replicated, so that every host can read the whole of it.
        embed = fsdp.within(mesh, lambda variables, views: system.embed(variables, term, views))
        self._embed = jax.jit(embed, out_shardings=replicated(mesh))

    def images(self, variables, images: np.ndarray) -> np.ndarray:
        """uint8[N, H, W, 3] -> float32[N, D], L2-normalised."""
        return self._run(variables, "image", images)

    def texts(self, variables, texts: Sequence[str]) -> np.ndarray:
        """N texts -> float32[N, D], L2-normalised."""
        return self._run(variables, "text", self._tokenizer(texts))

    def _run(self, variables, view, inputs):
        total = len(jax.tree.leaves(inputs)[0])
        parts = []
        for start in range(0, total, self._batch):
            part = jax.tree.map(functools.partial(padded_slice, start=start, size=self._batch), inputs)
            features = self._embed(variables, {view: mesh_lib.from_every_host(self._mesh, part)})
            parts.append(np.asarray(features[view])[: total - start])
        return np.concatenate(parts)


def padded_slice(array, start, size):
    """array[start : start + size], to the size by repeating its first row: so all are compiled alike."""
    part = array[start : start + size]
    return np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
