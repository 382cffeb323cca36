"""Converts weights of unrolled layers ("layer0", "layer1", ...) to those of scanned ones ("layer_stack"), and
back.

Both functions are pure, on nested dicts of arrays with layers at any depth: {"params": ...,
"batch_stats": ...}, gradients, averages. Both take `stacks`, see Encoder.stacks:
{regular expression of a prefix: index of the first layer in the stack}.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl.parallel.stacked import SUFFIX


def stack_layers(variables: Mapping, stacks: Mapping[str, int]) -> dict:
    """Every "<prefix><i>" from the first of the stack on becomes "<prefix>_stack", arrays [layers, ...].

    Stacked layers stay stacked. Raises ValueError if there are no layers, if one is missing, or if a layer's
    arrays differ from the others' in shape or dtype.
    """
    result, groups = {}, {}
    for path, leaf in _flatten("stack_layers", variables, stacks).items():
        at, prefix, index, first = _find(path, stacks, r"\d+")
        if prefix is None or int(index) < first:
            result[path] = leaf
        else:
            leaves = groups.setdefault((*path[:at], prefix), (first, {}))[1]
            leaves.setdefault(path[at + 1 :], {})[int(index)] = leaf
    for (*parent, prefix), (first, leaves) in groups.items():
        end = 1 + max(index for layers in leaves.values() for index in layers)
        for suffix, layers in leaves.items():
            names = {i: "/".join((*parent, f"{prefix}{i}", *suffix)) for i in range(first, end)}
            _put(result, (*parent, f"{prefix}{SUFFIX}", *suffix), _join(names, layers))
    return unflatten_dict(result)


def unstack_layers(variables: Mapping, stacks: Mapping[str, int]) -> dict:
    """The inverse: every "<prefix>_stack" becomes "<prefix><i>", i from the first of the stack on.

    Unrolled layers stay unrolled. Raises ValueError if there are no layers, or if the arrays of one stack
    have different lengths.
    """
    result, lengths = {}, {}
    for path, leaf in _flatten("unstack_layers", variables, stacks).items():
        at, prefix, _, first = _find(path, stacks, SUFFIX)
        if prefix is None:
            result[path] = leaf
            continue
        expected = lengths.setdefault(path[: at + 1], len(leaf))
        if len(leaf) != expected:
            raise ValueError(
                f"unstack_layers: {'/'.join(path)} has {len(leaf)} layers, others of its stack {expected}"
            )
        for i in range(len(leaf)):
            _put(result, (*path[:at], f"{prefix}{first + i}", *path[at + 1 :]), leaf[i])
    return unflatten_dict(result)


def _flatten(caller, variables, stacks):
    """{path: leaf}. Raises ValueError if a pattern of stacks matches no layer."""
    flat = flatten_dict(variables, keep_empty_nodes=True)
    for pattern in stacks:
        if all(_find(path, {pattern: 0}, rf"\d+|{SUFFIX}")[1] is None for path in flat):
            raise ValueError(f"{caller}: there are no layers {pattern}<i>")
    return flat


def _find(path, stacks, ending):
    """(index in the path, prefix, ending, first layer) for the name of a layer; Nones without one."""
    for at, name in enumerate(path):
        for pattern, first in stacks.items():
            if match := re.fullmatch(f"(?P<prefix>{pattern})(?P<ending>{ending})", name):
                return at, match["prefix"], match["ending"], first
    return None, None, None, None


def _join(names, layers):
    """Stacks layers, {index: array}, in the order of names: {index: the array's path, for messages}."""
    for i, name in names.items():
        if i not in layers:
            raise ValueError(f"stack_layers: {name} is missing")
    first, *others = names
    for i in others:
        kinds = [f"{layers[j].dtype}{list(layers[j].shape)}" for j in (i, first)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"stack_layers: {names[i]} is {kinds[0]}, but {names[first]} is {kinds[1]}")
    # NumPy arrays are stacked by NumPy: jax would convert float64 to float32.
    stack = np.stack if isinstance(layers[first], np.ndarray) else jnp.stack
    return stack([layers[i] for i in names])


def _put(tree, path, leaf):
    if path in tree:
        raise ValueError(f"layers: {'/'.join(path)} is there both as a layer and in a stack")
    tree[path] = leaf
