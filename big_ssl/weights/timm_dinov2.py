"""timm's vit_*_patch14_dinov2 and vit_*_patch14_reg4_dinov2: model.safetensors beside config.json.

Layout: timm/models/vision_transformer.py. In models with registers, timm has added the class token's position
embedding to the class token.
"""

from collections.abc import Mapping

import numpy as np

from big_ssl.models import vit
from big_ssl.weights import dino_layers, timm_config
from big_ssl.weights.format import Format, ModelConfig, image_config, shape_of

ARCHITECTURE = r"vit_(?P<size>[a-z]+)_patch14_(reg4_)?dinov2"
SIZES = timm_config.SIZES | dict(giant=(40, 24))


def _config(tensors, files, options) -> ModelConfig:
    first, last = (shape_of(tensors, f"blocks.0.mlp.fc{i}.weight", 2) for i in (1, 2))
    stated = timm_config.arguments(files, ARCHITECTURE, SIZES)
    shape = dino_layers.shape(tensors, options)
    timm_config.check_shape(stated, shape)
    shape["heads"] = timm_config.heads(stated, options, shape["width"])
    image = vit.DINOV2 | dict(
        **shape,
        feed_forward="swiglu" if first[0] == 2 * last[1] else "mlp",
        registers=shape_of(tensors, "reg_token", 3)[1] if "reg_token" in tensors else 0,
        position_resize="bicubic_antialias",
        pooling=timm_config.pooling(files, dict(token="cls"), "cls"),
        mask_token=False,  # timm drops it
    )
    return image_config(image, **timm_config.preprocessing(files, shape["image_size"]))


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
    weights=timm_config.WEIGHTS,
    files=timm_config.FILES,
    options=dino_layers.OPTIONS,
    prepare=_prepare,
)
