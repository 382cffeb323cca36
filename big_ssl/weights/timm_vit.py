"""timm's plain ViTs, vit_base_patch16_224 and the like, and DeiT's: model.safetensors beside config.json.

Layout: timm/models/vision_transformer.py. Architectures with other names differ in what arrays do not show.
"""

from big_ssl.weights import dino_layers, timm_config
from big_ssl.weights.format import Format, ModelConfig, image_config
from big_ssl.weights.rules import linear

ARCHITECTURE = r"(vit|deit)_(?P<size>[a-z]+)_patch\d+_\d+"
SIZES = timm_config.SIZES


def _config(tensors, files, options) -> ModelConfig:
    stated = timm_config.arguments(files, ARCHITECTURE, SIZES)
    shape = dino_layers.shape(tensors, options)
    timm_config.check_shape(stated, shape)
    shape["heads"] = timm_config.heads(stated, options, shape["width"])
    pooling = timm_config.pooling(files, dict(token="cls"), "cls")
    image = shape | dict(feed_forward="mlp", epsilon=1e-6, pooling=pooling)
    classes = dict(classes=dino_layers.out_features(tensors, "head")) if "head.weight" in tensors else {}
    return image_config(image, **timm_config.preprocessing(files, shape["image_size"]), **classes)


FORMAT = Format(
    config=_config,
    rules=lambda config: [
        *dino_layers.rules(config),
        *linear("head", "params/heads/classification/linear"),
    ],
    weights=timm_config.WEIGHTS,
    files=timm_config.FILES,
    options=dino_layers.OPTIONS,
)
