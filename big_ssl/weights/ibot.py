"""iBOT's and DINO's own files: a training run's checkpoint.pth, or a backbone, checkpoint_teacher.pth.

Layout: bytedance/ibot, main_ibot.py and models/vision_transformer.py. The option `network` chooses which one
of a training run to read: the teacher, which the paper evaluates, or the student.
"""

from collections.abc import Mapping

import numpy as np

from big_ssl.models import vit
from big_ssl.weights import dino_heads, dino_layers
from big_ssl.weights.dino_heads import Names
from big_ssl.weights.format import Format, ModelConfig, image_config

# Patches always share the class tokens' MLP; last_layer2 exists even if they share the prototypes too.
_HEADS = {"dino": Names("head.mlp", "head.last_layer"), "ibot": Names("head.mlp", "head.last_layer2")}


def _config(tensors, files, options) -> ModelConfig:
    del files
    shape = dino_layers.shape(tensors, options)
    image = vit.DINO | dict(**shape, feed_forward="mlp", mask_token="masked_embed" in tensors)
    return image_config(image, image_size=224, **dino_heads.options(tensors, _HEADS))


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Selects one network, removes prefixes from its names, and keeps shared prototypes once."""
    prepared = {}
    for name, array in dino_layers.select_network(tensors, options).items():
        for prefix in ("state_dict.", "module.", "backbone."):
            name = name.removeprefix(prefix)
        prepared[name] = array
    return dino_heads.normalize_names(_without_shared_prototypes(prepared))


def _without_shared_prototypes(tensors):
    """Drops the patches' prototypes if they equal the class tokens'."""
    first, second = (f"{_HEADS[name].last_layer}." for name in ("dino", "ibot"))
    patches = [name for name in tensors if name.startswith(second)]
    if all(np.array_equal(tensors[name], tensors.get(first + name.removeprefix(second))) for name in patches):
        return {name: array for name, array in tensors.items() if name not in patches}
    return tensors


FORMAT = Format(
    config=_config,
    rules=lambda config: [
        *dino_layers.rules(config, mask_token="masked_embed"),
        *dino_heads.rules(config, _HEADS),
    ],
    ignored=(
        # Training state, which a ModelConfig does not describe.
        r"(optimizer|fp16_scaler|ibot_loss|dino_loss)\..*",
        dino_layers.OTHER_NETWORK,
    ),
    options=dino_layers.TRAINING_OPTIONS,
    prepare=_prepare,
)
