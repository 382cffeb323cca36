"""The features that DINOv2's linear heads read (arXiv 2304.07193), and iBOT's before them."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models.vit import ViT


def linear_features(model: ViT, variables: Mapping, images, count: int):
    """For Predictor.apply: the class tokens of the last layers and the mean of the last layer's patches.

    Args:
      model: a ViT with a class token.
      variables: its variables.
      images: float[B, H, W, 3], normalised.
      count: how many of the last layers.

    Returns:
      float32[B, count + 1, D]: the class tokens of the last `count` layers, the last layer's last, then the
      mean of its patches, all after the final norm. Raises ValueError as check_layers does.
    """
    check_layers(model, count)
    outputs: Any = model.apply(variables, images, intermediate=range(-count, 0))
    layers = outputs["layers"]
    mean = layers["patches"][-1].astype(jnp.float32).mean(1)
    return jnp.concatenate([layers["cls"], mean[None]]).swapaxes(0, 1)


def check_layers(model: nn.Module, count: int) -> None:
    """Raises ValueError if a model does not have class tokens after its last `count` layers."""
    if not {"cls", "layers"} <= set(model.outputs):
        raise ValueError(
            f"the image encoder, {type(model).__name__}, has no class token; it must be a ViT with one"
        )
    if count > model.num_layers:
        raise ValueError(f"the last {count} layers are requested; the image encoder has {model.num_layers}")
