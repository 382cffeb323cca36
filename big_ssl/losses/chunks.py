"""Functions of [G, N, ...] taken along the second axis in chunks, each computed again for the gradient.

The first axis is the one that devices split, so that every chunk is a part of each device's share.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def mapped(function: Callable, points, chunk: int):
    """function({name: [G, c, ...]}) -> (each: [G, c, ...] arrays, sums: [G, ...]) of all chunks.

    points: {name: [G, N, ...]}; chunk: c, of which the last may be less; 0 for all at once, of which all is
    kept for the gradient. Returns each: [G, N, ...] arrays, and sums: [chunks, G, ...].
    """
    if not chunk:
        each, sums = function(points)
        return each, jax.tree.map(lambda x: x[None], sums)
    whole, rest = _chunked(points, chunk)
    again = jax.checkpoint(function)
    each, sums = jax.lax.map(again, whole)
    each = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), each)
    if rest is None:
        return each, sums
    last, last_sums = again(rest)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), each, last)
    return joined, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), sums, last_sums)


def fold(function: Callable, start, points, chunk: int):
    """function(value, [G, c, ...]) -> value, over all chunks of points [G, N, ...]; for no gradient."""
    whole, rest = _chunked(points, chunk)
    value, _ = jax.lax.scan(lambda value, part: (function(value, part), None), start, whole)
    return value if rest is None else function(value, rest)


def _chunked(points, chunk):
    """(whole chunks [N // c, G, c, ...], what is left [G, N % c, ...] or None)."""
    count = jax.tree.leaves(points)[0].shape[1]
    size = min(chunk, count) or count
    chunks = count // size

    def split(x):
        return jnp.moveaxis(x[:, : chunks * size].reshape(len(x), chunks, size, *x.shape[2:]), 1, 0)

    rest = None if chunks * size == count else jax.tree.map(lambda x: x[:, chunks * size :], points)
    return jax.tree.map(split, points), rest
