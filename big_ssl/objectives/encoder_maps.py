"""The maps of an image encoder that the heads of dense objectives read."""

from collections.abc import Mapping
from typing import Any


def encoder_maps(outputs: Mapping[str, Any]) -> list:
    """float[..., h, w, D] of each layer that the call has, whose patches have the grid of the pyramid's only
    map; without layers the maps of the pyramid."""
    if "layers" not in outputs:
        return list(outputs["pyramid"])
    return [layer["patches"].reshape(outputs["pyramid"][0].shape) for layer in outputs["layers"]]


def map_outputs(layers: tuple[int, ...]) -> tuple[str, ...]:
    """The encoder's outputs that encoder_maps reads, for an EncoderCall with these layers."""
    return ("pyramid", "layers") if layers else ("pyramid",)
