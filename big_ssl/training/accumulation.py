"""The loss and its gradient from microbatches, equal to those of the whole batch.

Terms that couple examples see every example of the batch, as in GradCache (Gao et al. 2021,
arXiv 2101.06983): a first pass encodes all microbatches without keeping activations; the terms
are computed once, on the features of all of them; a second pass runs each microbatch again, with
the same random numbers, and sends back through it the gradient by its features. Terms that are a
mean over examples are computed, and averaged, in that second pass.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_ssl.parallel.mesh import BATCH_AXES, batch_ways
from big_ssl.parallel.sharding import path_name


def value_and_grad(system, microbatches: int, mesh: Mesh):
    """System.loss with its gradient by the parameters, in so many microbatches.

    Returns f(params, mutable, batch, key, step, teacher=None) -> ((loss, (metrics, mutable)), gradients).
    Every stream's batch must be divisible by microbatches x the ways that the mesh splits it.
    """
    if microbatches == 1:
        return jax.value_and_grad(system.loss, has_aux=True)
    return functools.partial(_accumulated, system, microbatches, mesh)


def _accumulated(system, count, mesh, params, mutable, batch, key, step, teacher=None):
    parts = jax.tree.map(functools.partial(_split, count, mesh), batch), jax.random.split(key, count)
    coupled = [name for name, term in system.terms.items() if term.objective.scope == "batch"]

    def features(params, part, key):
        return system.features(params, mutable["encoders"], part, key, teacher)

    def coupled_features(part):
        found, _ = features(params, *part)
        return _parted({name: found[name] for name in coupled})

    def coupled_loss(own, shared):
        return system.combine(_whole(own, shared), batch, mutable["objectives"], step)

    own = jax.lax.map(lambda part: coupled_features(part)[0], parts)
    joined = jax.tree.map(functools.partial(_join, batch_ways(mesh)), own)
    # Of one microbatch only what does not depend on it; the compiler leaves the encoders out.
    shared = coupled_features(jax.tree.map(lambda x: x[0], parts))[1]
    (loss, (metrics, kept)), (by_own, by_shared) = jax.value_and_grad(coupled_loss, (0, 1), has_aux=True)(
        joined, shared
    )
    by_own = jax.tree.map(functools.partial(_split, count, mesh), by_own)
    by_shared = jax.tree.map(lambda x: x / count, by_shared)

    def part_loss(params, part, key, by_own):
        """A number whose gradient is this microbatch's share of the batch's, and the rest of it."""
        found, encoders = features(params, part, key)
        mine = _parted({name: found.pop(name) for name in coupled})
        pulled = jax.tree.map(jnp.vdot, mine, (by_own, by_shared))
        value, rest = system.combine(found, part, mutable["objectives"], step)
        return jax.tree.reduce(jnp.add, pulled, 0.0) + value / count, (value, *rest, encoders)

    def add(grads, part):
        part_grads, rest = jax.grad(part_loss, has_aux=True)(params, *part)
        return jax.tree.map(jnp.add, grads, part_grads), rest

    grads, rest = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (*parts, by_own))
    # Running statistics are linear in the batch's, so the mean of all updates is the one update.
    value, own_metrics, own_kept, encoders = jax.tree.map(lambda x: x.mean(0), rest)
    mutable = {"encoders": encoders, "objectives": kept | own_kept}
    return (loss + value, (metrics | own_metrics, mutable)), grads


def _parted(features):
    """(what each example has, what all share: scalars and what is under "shared"), two trees with None for
    the other's."""

    def own(path, x):
        return x.ndim > 0 and "shared" not in path_name(path).split("/")

    return tuple(
        jax.tree_util.tree_map_with_path(lambda path, x, w=wanted: x if own(path, x) == w else None, features)
        for wanted in (True, False)
    )


def _whole(own, shared):
    """The inverse of _parted."""
    return jax.tree.map(lambda a, b: b if a is None else a, own, shared, is_leaf=lambda x: x is None)


def _split(count, mesh, x):
    """[B, ...] -> [count, B / count, ...], every microbatch a part of each device's examples."""
    ways = batch_ways(mesh)
    x = x.reshape(ways, count, -1, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(count, -1, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)))


def _join(ways, x):
    """The inverse of _split."""
    count = len(x)
    return x.reshape(count, ways, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])
