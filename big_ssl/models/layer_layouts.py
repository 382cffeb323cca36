"""Weights of unrolled layers ("layer0", "layer1", ...) as those of scanned ones ("layer_stack"), and back.

Both ways are pure functions over nested dicts of arrays, at any depth of which layers may lie:
{"params": ..., "batch_stats": ...}, gradients, averages. Both take `stacks`, a tower's STACKS:
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

    Layers that are stacked already stay so. Raises ValueError where there are none, where one is
    missing, and where a layer's arrays have not the shapes and dtypes of the others'.
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
        for rest, layers in leaves.items():
            names = {i: "/".join((*parent, f"{prefix}{i}", *rest)) for i in range(first, end)}
            _put(result, (*parent, f"{prefix}{SUFFIX}", *rest), _join(names, layers))
    return unflatten_dict(result)


def unstack_layers(variables: Mapping, stacks: Mapping[str, int]) -> dict:
    """The way back: every "<prefix>_stack" becomes "<prefix><i>", i from the first of the stack on.

    Layers that are unrolled already stay so. Raises ValueError where there are none, and where the
    arrays of one stack are of different lengths.
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
    """{path: leaf}, in which every pattern of stacks has some layer."""
    flat = flatten_dict(variables, keep_empty_nodes=True)
    for pattern in stacks:
        if all(_find(path, {pattern: 0}, rf"\d+|{SUFFIX}")[1] is None for path in flat):
            raise ValueError(f"{caller}: there are no layers {pattern}<i>")
    return flat


def _find(path, stacks, ending):
    """(place in the path, prefix, ending, first index) of the name that is a layer's; Nones if none is."""
    for at, name in enumerate(path):
        for pattern, first in stacks.items():
            if match := re.fullmatch(f"(?P<prefix>{pattern})(?P<ending>{ending})", name):
                return at, match["prefix"], match["ending"], first
    return None, None, None, None


def _join(names, layers):
    """The arrays {index: array} as one, stacked in the order of names: {index: what it is called}."""
    for i, name in names.items():
        if i not in layers:
            raise ValueError(f"stack_layers: {name} is missing")
    first, *others = names
    for i in others:
        kinds = [f"{layers[j].dtype}{list(layers[j].shape)}" for j in (i, first)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"stack_layers: {names[i]} is {kinds[0]}, but {names[first]} is {kinds[1]}")
    # NumPy's by NumPy: jax would make float32 of float64.
    stack = np.stack if isinstance(layers[first], np.ndarray) else jnp.stack
    return stack([layers[i] for i in names])


def _put(tree, path, leaf):
    if path in tree:
        raise ValueError(f"layers: {'/'.join(path)} is there both as a layer and in a stack")
    tree[path] = leaf
