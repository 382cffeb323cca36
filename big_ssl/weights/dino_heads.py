"""The heads that DINO's children are trained with, as their trainings' checkpoints name them.

Layout: facebookresearch/dinov2, dinov2/layers/dino_head.py; bytedance/ibot, models/head.py. An MLP, whose
linear layers have the even numbers, and prototypes under PyTorch's weight norm: directions and lengths.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from big_ssl.weights.format import Config, count, shape_of
from big_ssl.weights.rules import LINEAR, Rule, Transform, linear


class Names(NamedTuple):
    """What the names of a head's two parts start with."""

    mlp: str
    last_layer: str


# Where ours are; see models.projection_head.
PROJECTION = "params/heads/{}/projection/"
_LENGTHS, _DIRECTIONS = ".weight_g", ".weight_v"
# The same by the weight norm of newer PyTorch.
_NEWER = {".parametrizations.weight.original0": _LENGTHS, ".parametrizations.weight.original1": _DIRECTIONS}
# [K, 1] as [K].
_COLUMN = Transform(lambda x: (x.reshape(len(x)),), lambda xs: xs[0][:, None])
# Frozen lengths are 1 in a student, and in its average 1 but for the rounding of so many steps.
_ONE = 1e-3


def prepared(tensors: Mapping) -> dict:
    """The arrays by older PyTorch's names, without the lengths of prototypes that were never trained."""
    found = {}
    for name, array in tensors.items():
        for newer, older in _NEWER.items():
            name = name.removesuffix(newer) + older if name.endswith(newer) else name
        if not (name.endswith(_LENGTHS) and np.all(np.abs(array.astype(np.float32) - 1) < _ONE)):
            found[name] = array
    return found


def options(tensors: Mapping, names: Mapping[str, Names]) -> dict:
    """Config["projections"] of the heads that are there, {} for none; names: {objective: Names}."""
    there = {
        objective: _options(tensors, head)
        for objective, head in names.items()
        if any(name.startswith(f"{head.last_layer}.") for name in tensors)
    }
    return dict(projections=there) if there else {}


def _options(tensors, head):
    prototypes, bottleneck = shape_of(tensors, head.last_layer + _DIRECTIONS, 2)
    return dict(
        prototypes=prototypes,
        hidden=shape_of(tensors, f"{head.mlp}.0.weight", 2)[0],
        bottleneck=bottleneck,
        layers=1 + count(tensors, head.mlp.replace(".", r"\.") + r"\.(\d+)\.") // 2,
        norm_last_layer=head.last_layer + _LENGTHS not in tensors,
    )


def rules(config: Config, names: Mapping[str, Names]) -> list[Rule]:
    """All names of the heads of a Config."""
    found = []
    for objective, head in config.get("projections", {}).items():
        ours = PROJECTION.format(objective)
        for i in range(head["layers"]):
            found += linear(f"{names[objective].mlp}.{2 * i}", f"{ours}mlp_{i}")
        last_layer = names[objective].last_layer
        found.append(Rule(last_layer + _DIRECTIONS, (f"{ours}prototypes",), LINEAR))
        found.append(Rule(last_layer + _LENGTHS, (f"{ours}prototype_lengths",), _COLUMN))
    return found
