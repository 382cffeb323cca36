"""Embeddings of many pictures or texts, in batches sharded over the mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from big_ssl.evals import reading
from big_ssl.evals.reading import HostSplit
from big_ssl.losses.contrastive import l2_normalize
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import replicated


def _unseen(steps: Iterable, total: int, what: str) -> Iterable:
    del total, what
    return steps


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A model with its weights, as evaluators see it.

    prepare: uint8[B, H, W, 3] -> uint8[B, S, S, 3], the pictures as the model wants them.
    images: such uint8[N, S, S, 3] -> float32[N, D], and texts: N texts -> float32[N, D], both
    L2-normalised; pooled: images -> float32[N, W], the image tower's output before its projection;
    logits: images -> float32[N, C], what a trained classifier says, None where there is none.
    inside: (look, uint8[N, S, S, 3], *options) -> float32[N, ...], what look(the image tower's module, its
    variables, float32[B, S, S, 3], *options) gives of each batch, one of at most `size` pictures if that
    is given.
    split: how hosts share the decoding of a batch. Each of these functions of pictures takes either pictures
    that every host has whole, or a batch that `split` has placed, see evals.reading.
    track: (steps, their number, what they do) -> steps, to show how far a long loop is.
    known: the features of labelled sets that were asked for before, for the next that asks.
    """

    prepare: Callable[[np.ndarray], np.ndarray]
    images: Callable[[np.ndarray], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray]
    pooled: Callable[[np.ndarray], np.ndarray]
    inside: Callable[..., np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray] | None = None
    split: HostSplit = reading.UNSPLIT
    track: Callable[[Iterable, int, str], Iterable] = _unseen
    known: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)


class Towers:
    """One term's towers, of which every state that training reaches makes an Embedder. Of a system without a
    term that embeds images, "", the normalised pooled output is the embedding, and texts there are none.

    Each tower is compiled once. prepare: as in Embedder; classifier: the term whose head gives the logits of
    classes, "" for none.
    """

    def __init__(
        self, system, term: str, tokenizer, mesh, prepare, batch_size: int = 256, classifier: str = ""
    ):
        self._mesh, self._tokenizer, self._prepare = mesh, tokenizer, prepare
        self._batch_size, self._classifier = batch_size, classifier
        self._split = reading.over_mesh(mesh, batch_size)
        self._run = sharded(functools.partial(_features, system, term, classifier), mesh)
        self._looking = looking(system.image_tower, mesh)

    def at(self, variables) -> Embedder:
        """variables: as state.evaluation_variables gives."""

        def run(view, feature, inputs):
            batch = lambda part: self._run(variables, {view: part})[feature]  # noqa: E731
            return in_batches(batch, self._mesh, inputs, self._batch_size)

        def inside(look, images, *options, size=self._batch_size):
            seen = functools.partial(self._looking(look, *options), variables)
            return in_batches(seen, self._mesh, images, size)

        return Embedder(
            prepare=self._prepare,
            images=functools.partial(run, "image", "image"),
            texts=lambda texts: run("text", "text", self._tokenizer(texts)),
            pooled=functools.partial(run, "image", "pooled"),
            inside=inside,
            logits=functools.partial(run, "image", "logits") if self._classifier else None,
            split=self._split,
        )


def _features(system, term, classifier, variables, views):
    outputs = system.encode(variables, term, views)
    features = system.head(variables, term, outputs) if term else {}
    if "image" in outputs:
        pooled = outputs["image"]["pooled"]
        features = dict(image=l2_normalize(pooled)) | features | dict(pooled=pooled)
        if classifier:
            features |= system.head(variables, classifier, dict(image=outputs["image"]))
    return features


def looking(tower: Callable, mesh) -> Callable:
    """(look, *options) -> the compiled function of (variables, images) that gives what look sees.

    tower: (variables, uint8 images) -> (module, its variables, its input); see Embedder.inside.
    """

    @functools.cache
    def compiled(look, *options):
        return sharded(lambda variables, images: look(*tower(variables, images), *options), mesh)

    return compiled


def sharded(function, mesh):
    """The function of (variables, batch) compiled for batches split over the mesh; what it gives is
    whole on every host."""
    return jax.jit(fsdp.within(mesh, function), out_shardings=replicated(mesh))


def in_batches(run, mesh, inputs, size: int) -> np.ndarray:
    """What run(batch) gives for inputs of any length N, as float32[N, ...].

    inputs: an array or a tree of arrays [N, ...]; size: of a batch, rounded up to what the mesh
    divides. The last batch is padded by repeating its first row, and the padding cut off again, so
    that all batches are compiled alike. Or a batch that is on the devices, see evals.reading.
    """
    if isinstance(inputs, jax.Array):
        return np.asarray(run(inputs), np.float32)
    ways, total, found = mesh_lib.batch_shards(mesh), len(jax.tree.leaves(inputs)[0]), []
    size = -(-size // ways) * ways
    for start in range(0, total, size):
        part = jax.tree.map(functools.partial(_padded_slice, start=start, size=size), inputs)
        features = run(mesh_lib.from_every_host(mesh, part))
        found.append(np.asarray(features, np.float32)[: total - start])
    return np.concatenate(found)


def _padded_slice(array, start, size):
    part = array[start : start + size]
    return np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
