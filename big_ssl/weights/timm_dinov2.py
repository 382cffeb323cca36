"""timm's vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2: model.safetensors beside config.json.

Layout: timm/models/vision_transformer.py. In models with registers, timm has added the class token's position
embedding to the class token.
"""

import math
from collections.abc import Mapping

import numpy as np

from big_ssl.models import vit
from big_ssl.weights import dino_layers
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGENET_PIXELS, Format, ModelConfig, image_config, shape_of


def _config(tensors, files, options) -> ModelConfig:
    first, last = (shape_of(tensors, f"blocks.0.mlp.fc{i}.weight", 2) for i in (1, 2))
    shape = dino_layers.shape(tensors, options)
    image = vit.DINOV2 | dict(
        **shape,
        feed_forward="swiglu" if first[0] == 2 * last[1] else "mlp",
        registers=shape_of(tensors, "reg_token", 3)[1] if "reg_token" in tensors else 0,
        position_resize="bicubic_antialias",
        mask_token=False,  # timm drops it
    )
    settings = files.get("config.json", {}).get("pretrained_cfg", {})
    if settings.get("interpolation", "bicubic") != "bicubic":
        raise WeightsError(f"config.json: interpolation is {settings['interpolation']!r}; there is bicubic")
    if settings.get("crop_mode", "center") != "center":
        raise WeightsError(f"config.json: crop_mode is {settings['crop_mode']!r}; there is center")
    size = settings.get("input_size", (3, shape["image_size"]))[1]
    side = math.floor(size / settings.get("crop_pct", 1.0))
    pixels = {key: tuple(settings.get(key, IMAGENET_PIXELS[key])) for key in ("mean", "std")}
    views = dict(image=IMAGENET_PIXELS | pixels)
    return image_config(image, size, views=views, resize="crop" if side == size else f"crop {side}")


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Adds a zero position embedding for the class token if the file has none."""
    del options
    prepared = dict(tensors)
    if "reg_token" in tensors and "pos_embed" in tensors:
        table = tensors["pos_embed"]
        prepared["pos_embed"] = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    return prepared


FORMAT = Format(
    config=_config,
    rules=lambda config: dino_layers.rules(config, registers="reg_token", swiglu=("mlp.fc1", "mlp.fc2")),
    weights=("model.safetensors", "pytorch_model.bin"),
    files=("config.json",),
    options=dino_layers.OPTIONS,
    prepare=_prepare,
)
