"""Layer-wise learning-rate decay towards a transformer's input, as a value in config.lr_multipliers.

dict(kind="layer_decay", decay=0.75): with L layers, the learning rate of layer i, counted from 0, is
multiplied by decay ** (L - i), that of embeddings by decay ** (L + 1); the final norm, a pooling and heads
have the full rate (BEiT, Bao et al. 2022, arXiv 2106.08254, optim_factory.py of its code; iBOT and DINOv2 do
the same); see Encoder.layer_id.
patch_embedding: an additional factor for the patch embedding, 0.2 in DINOv2's pre-training.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from big_ssl.models.encoder import Encoder
from big_ssl.parallel.stacked import is_stacked

KIND = "layer_decay"


@dataclasses.dataclass(frozen=True)
class LayerDecay:
    """Raises ValueError for factors that are not in (0, 1]."""

    decay: float
    patch_embedding: float = 1.0

    def __post_init__(self):
        for name, factor in dataclasses.asdict(self).items():
            if not 0 < factor <= 1:
                raise ValueError(f"layer_decay: {name} is {factor}; it must lie in (0, 1]")

    def factor(self, path, leaf, encoders: Mapping[str, Encoder]):
        """The multiplier of one parameter's learning rate.

        Args:
          path: its JAX key path in {"encoders": {name: parameters}, "heads": ...}.
          leaf: the parameter, of which only the shape is read.
          encoders: {name: module}.

        Returns:
          A number; for a stack of layers float32[layers, 1, ...]. Raises ValueError for an encoder without
          layers.
        """
        kind, name, *place = (key.key for key in path)
        if kind == "heads":
            return 1.0
        last = encoders[name].num_layers + 1
        if last == 1:
            raise ValueError(
                f"lr_multipliers: layer_decay is for transformers; encoders/{name} has no layers"
            )
        layer = encoders[name].layer_id(place)
        if is_stacked(path):
            layers = layer + encoders[name].layers_per_entry * np.arange(len(leaf))
            factors = (self.decay ** (last - layers)).astype(np.float32)
            return factors.reshape(-1, *(1,) * (leaf.ndim - 1))
        extra = self.patch_embedding if place[0] == "patch_embedding" else 1.0
        return extra * self.decay ** (last - layer)


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
