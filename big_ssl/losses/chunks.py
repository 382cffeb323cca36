"""Applies a function to [G, N, ...] arrays in chunks of the second axis, recomputed in the backward pass.

The first axis is sharded over devices, so every chunk holds a part of each device's rows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def map_chunks(function: Callable, inputs, chunk: int):
    """Maps a function over chunks and recomputes each chunk in the backward pass.

    Args:
      function: {name: [G, c, ...]} -> (outputs: [G, c, ...], sums: [G, ...]), any pytrees.
      inputs: {name: [G, N, ...]}.
      chunk: c; the last chunk may be shorter. 0 computes all at once and keeps all activations.

    Returns:
      (outputs: [G, N, ...], sums: [chunks, G, ...]).
    """
    if not chunk:
        outputs, sums = function(inputs)
        return outputs, jax.tree.map(lambda x: x[None], sums)
    chunks, remainder = _split(inputs, chunk)
    function = jax.checkpoint(function)
    outputs, sums = jax.lax.map(function, chunks)
    outputs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), outputs)
    if remainder is None:
        return outputs, sums
    last, last_sums = function(remainder)
    outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), outputs, last)
    return outputs, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), sums, last_sums)


def fold_chunks(function: Callable, start, inputs, chunk: int):
    """Folds function(carry, [G, c, ...]) -> carry over chunks of inputs [G, N, ...]; not for gradients."""
    chunks, remainder = _split(inputs, chunk)
    carry, _ = jax.lax.scan(lambda carry, part: (function(carry, part), None), start, chunks)
    return carry if remainder is None else function(carry, remainder)


def _split(inputs, chunk):
    """(full chunks [N // c, G, c, ...], remainder [G, N % c, ...] or None)."""
    length = jax.tree.leaves(inputs)[0].shape[1]
    size = min(chunk, length) or length
    count = length // size

    def split(x):
        return jnp.moveaxis(x[:, : count * size].reshape(len(x), count, size, *x.shape[2:]), 1, 0)

    remainder = None if count * size == length else jax.tree.map(lambda x: x[:, count * size :], inputs)
    return jax.tree.map(split, inputs), remainder
