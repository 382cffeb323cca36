"""iBOT's own files, and DINO's: checkpoint.pth of a training, or checkpoint_teacher.pth, a backbone.

Layout: bytedance/ibot, main_ibot.py and models/vision_transformer.py. The option network says which of
a training's two is read: the teacher, which the paper evaluates, or the student.
"""

from collections.abc import Mapping

import numpy as np

from big_ssl.models import vit
from big_ssl.weights import dino_heads, dino_layers
from big_ssl.weights.dino_heads import Names
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import Config, Format, image_config

_NETWORKS = ("teacher", "student")
# Patches have prototypes of their own where they do not share those of class tokens, and always its MLP.
_HEADS = {"dino": Names("head.mlp", "head.last_layer"), "ibot": Names("head.mlp", "head.last_layer2")}


def _config(tensors, files, options) -> Config:
    del files
    shape = dino_layers.shape(tensors, options)
    image = vit.DINO | dict(**shape, feed_forward="mlp", mask_token="masked_embed" in tensors)
    return image_config(image, image_size=224, **dino_heads.options(tensors, _HEADS))


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """The names of one network without what they are prefixed by, and prototypes that are shared once."""
    network = options.get("network", _NETWORKS[0])
    if network not in _NETWORKS:
        raise WeightsError(f"network is {network!r}; there are {', '.join(_NETWORKS)}")
    if "network" in options and not any(name.startswith(f"{network}.") for name in tensors):
        raise WeightsError(f"network is {network!r}; the file holds a backbone alone")
    prepared = {}
    for name, array in tensors.items():
        for prefix in (f"{network}.", "state_dict.", "module.", "backbone."):
            name = name.removeprefix(prefix)
        prepared[name] = array
    return dino_heads.prepared(_shared_once(prepared))


def _shared_once(tensors):
    """Without the patches' prototypes where they are those of class tokens."""
    first, second = (f"{_HEADS[name].last_layer}." for name in ("dino", "ibot"))
    own = [name for name in tensors if name.startswith(second)]
    if all(np.array_equal(tensors[name], tensors.get(first + name.removeprefix(second))) for name in own):
        return {name: array for name, array in tensors.items() if name not in own}
    return tensors


FORMAT = Format(
    config=_config,
    rules=lambda config: [
        *dino_layers.rules(config, mask_token="masked_embed"),
        *dino_heads.rules(config, _HEADS),
    ],
    ignored=(
        # Of training alone: a Config has no place for them.
        r"(optimizer|fp16_scaler|ibot_loss|dino_loss)\..*",
        # The network that was not asked for.
        r"(student|teacher)\..*",
    ),
    options=(*dino_layers.OPTIONS, "network"),
    prepare=_prepare,
)
