"""Projection heads in the training checkpoints of DINO, iBOT and DINOv2.

Layout: facebookresearch/dinov2, dinov2/layers/dino_head.py; bytedance/ibot, models/head.py. An MLP, whose
linear layers have even indices, and prototypes under PyTorch's weight norm, weight_g and weight_v.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from big_ssl.weights.format import ModelConfig, count, shape_of
from big_ssl.weights.rules import LINEAR, Rule, Transform, linear


class Names(NamedTuple):
    """The prefixes of a head's two parts."""

    mlp: str
    last_layer: str


# Our paths; see models.projection_head.
PROJECTION = "params/heads/{}/projection/"
_WEIGHT_G, _WEIGHT_V = ".weight_g", ".weight_v"
# The same arrays in newer PyTorch.
_NEWER = {".parametrizations.weight.original0": _WEIGHT_G, ".parametrizations.weight.original1": _WEIGHT_V}
# [K, 1] as [K].
_COLUMN = Transform(lambda x: (x.reshape(len(x)),), lambda xs: xs[0][:, None])
# With a frozen norm (norm_last_layer) weight_g is 1 in a student; in its EMA it is 1 up to rounding.
_FROZEN_TOLERANCE = 1e-3


def normalize_names(tensors: Mapping) -> dict:
    """Renames arrays to older PyTorch's names and drops every weight_g that was frozen at 1."""
    renamed = {}
    for name, array in tensors.items():
        for newer, older in _NEWER.items():
            name = name.removesuffix(newer) + older if name.endswith(newer) else name
        deviation = np.abs(array.astype(np.float32) - 1) if name.endswith(_WEIGHT_G) else np.inf
        if not np.all(deviation < _FROZEN_TOLERANCE):
            renamed[name] = array
    return renamed


def options(tensors: Mapping, names: Mapping[str, Names]) -> dict:
    """dict(projections=options of the checkpoint's heads), {} without heads. names: {objective: Names}."""
    projections = {
        objective: _options(tensors, head)
        for objective, head in names.items()
        if any(name.startswith(f"{head.last_layer}.") for name in tensors)
    }
    return dict(projections=projections) if projections else {}


def _options(tensors, head):
    prototypes, bottleneck = shape_of(tensors, head.last_layer + _WEIGHT_V, 2)
    return dict(
        prototypes=prototypes,
        hidden=shape_of(tensors, f"{head.mlp}.0.weight", 2)[0],
        bottleneck=bottleneck,
        layers=1 + count(tensors, head.mlp.replace(".", r"\.") + r"\.(\d+)\.") // 2,
        norm_last_layer=head.last_layer + _WEIGHT_G not in tensors,
    )


def rules(config: ModelConfig, names: Mapping[str, Names]) -> list[Rule]:
    """The rules for a ModelConfig's projection heads."""
    head_rules = []
    for objective, head in config.get("projections", {}).items():
        ours = PROJECTION.format(objective)
        for i in range(head["layers"]):
            head_rules += linear(f"{names[objective].mlp}.{2 * i}", f"{ours}mlp_{i}")
        last_layer = names[objective].last_layer
        head_rules.append(Rule(last_layer + _WEIGHT_V, (f"{ours}prototypes",), LINEAR))
        head_rules.append(Rule(last_layer + _WEIGHT_G, (f"{ours}prototype_lengths",), _COLUMN))
    return head_rules
