"""Layer-wise learning-rate decay towards a transformer's input, as a value in config.lr_multipliers.

dict(kind="layer_decay", decay=0.75): of L layers, layer i, counted from 0, learns decay ** (L - i) times as
fast, what stands before the layers decay ** (L + 1), the final norm, a pooling and heads at the full rate
(BEiT, Bao et al. 2022, arXiv 2106.08254, optim_factory.py of its code; iBOT and DINOv2 do the same).
patch_embedding: another factor for that alone, 0.2 in DINOv2's pre-training.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import numpy as np

from big_ssl.parallel.stacked import SUFFIX

KIND = "layer_decay"
_LAYER, _STACK = re.compile(r"layer(\d+)"), f"layer{SUFFIX}"
# What BEiT's rule lets learn at the full rate, by our names.
_AFTER = ("final_norm", "pooling")


@dataclasses.dataclass(frozen=True)
class LayerDecay:
    """Raises ValueError for factors that are not in (0, 1]."""

    decay: float
    patch_embedding: float = 1.0

    def __post_init__(self):
        for name, factor in dataclasses.asdict(self).items():
            if not 0 < factor <= 1:
                raise ValueError(f"layer_decay: {name} is {factor}; it must lie in (0, 1]")

    def factor(self, path, leaf, params: Mapping):
        """What the rate of the parameter at a path of params is multiplied by: a number, or for a stack
        float32[layers, 1, ...].

        params: {"encoders": {name: tower}, "heads": ...}. Raises ValueError for a tower without layers.
        """
        kind, *place = (key.key for key in path)
        if kind == "heads" or place[1] in _AFTER:
            return 1.0
        layers = _count(place[0], params[kind][place[0]])
        if place[1] == _STACK:
            each = np.array([self.decay ** (layers - i) for i in range(layers)], np.float32)
            return each.reshape(layers, *(1,) * (leaf.ndim - 1))
        if match := _LAYER.fullmatch(place[1]):
            return self.decay ** (layers - int(match[1]))
        extra = self.patch_embedding if place[1] == "patch_embedding" else 1.0
        return extra * self.decay ** (layers + 1)


def is_layer_decay(value) -> bool:
    """Whether a config value is a mapping that `build` knows."""
    return isinstance(value, Mapping) and value.get("kind") == KIND


def build(value: Mapping) -> LayerDecay:
    """From its config. Raises ValueError for another key."""
    options = {key: factor for key, factor in value.items() if key != "kind"}
    known = [field.name for field in dataclasses.fields(LayerDecay)]
    for key in options:
        if key not in known:
            raise ValueError(f"layer_decay: {key} is no option; there are {', '.join(known)}")
    if "decay" not in options:
        raise ValueError("layer_decay: decay is missing")
    return LayerDecay(**options)


def _count(name, tower):
    """How many layers a tower has, in a stack or apart."""
    if _STACK in tower:
        return len(next(iter(jax.tree.leaves(tower[_STACK]))))
    layers = sum(bool(_LAYER.fullmatch(key)) for key in tower)
    if not layers:
        raise ValueError(f"lr_multipliers: layer_decay is for transformers; encoders/{name} has no layers")
    return layers
