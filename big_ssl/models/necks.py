"""The table of necks: modules from an encoder's maps to the maps that a dense head reads.

Each is called with (maps: a tuple of [B, H_i, W_i, D_i], their strides), and returns a tuple of
[B, h, w, channels] at the module's own `strides`.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models.feature_pyramid import FeaturePyramid
from big_ssl.models.simple_feature_pyramid import SimpleFeaturePyramid

NECKS: dict[str, Callable[..., nn.Module]] = {
    "fpn": FeaturePyramid,
    "simple_feature_pyramid": SimpleFeaturePyramid,
}


def build(config: Mapping, dtype: str) -> nn.Module:
    """The neck that config["kind"] names, with the other keys as its options.

    dtype: of the computation. Raises ValueError for an unknown kind or option.
    """
    options = {key: value for key, value in config.items() if key != "kind"}
    if config.get("kind") not in NECKS:
        raise ValueError(f"neck.kind is {config.get('kind')!r}; there are {', '.join(NECKS)}")
    try:
        return NECKS[config["kind"]](dtype=jnp.dtype(dtype), **options)
    except TypeError as error:
        raise ValueError(f"neck: {error}") from error
