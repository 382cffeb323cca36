"""DINOv2's own files, with or without registers: a backbone, or a training run's teacher_checkpoint.pth.

Layout: facebookresearch/dinov2, dinov2/models/vision_transformer.py. The files do not store how positions are
resized; the published models with registers do it differently from those without.

A training run's model_*.rank_*.pth is read if there was one process: `network` chooses the teacher or the
student. Those of several processes hold slices of flattened parameters without their shapes, and are refused.
"""

import re
from collections.abc import Mapping

from big_ssl.models import vit
from big_ssl.models.position_embedding import RESIZES
from big_ssl.models.transformer import lookup
from big_ssl.weights import dino_heads, dino_layers
from big_ssl.weights.dino_heads import Names
from big_ssl.weights.format import Format, ModelConfig, image_config, shape_of

# A checkpoint with one head for both objectives stores it as dino_head.
HEADS = {
    "dino": Names("dino_head.mlp", "dino_head.last_layer"),
    "ibot": Names("ibot_head.mlp", "ibot_head.last_layer"),
}


def _config(tensors, files, options) -> ModelConfig:
    del files
    swiglu = f"blocks.0.{dino_layers.SWIGLU[0]}.weight" in tensors
    registers = shape_of(tensors, "register_tokens", 3)[1] if "register_tokens" in tensors else 0
    resize = options.get("position_resize", "bicubic_antialias" if registers else "dinov2")
    lookup(RESIZES, resize, "position_resize")
    image = vit.DINOV2 | dict(
        **dino_layers.shape(tensors, options, dino_layers.SWIGLU[1] if swiglu else "mlp.fc2"),
        feed_forward="swiglu" if swiglu else "mlp",
        registers=registers,
        position_resize=resize,
        mask_token="mask_token" in tensors,
    )
    return image_config(image, image_size=224, **dino_heads.options(tensors, HEADS))


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Selects one network; removes prefixes and FSDP's block chunks from names."""
    prepared = {}
    for name, array in dino_layers.select_network(tensors, options).items():
        name = name.removeprefix("backbone.")
        prepared[re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)] = array
    return dino_heads.normalize_names(prepared)


FORMAT = Format(
    config=_config,
    rules=lambda config: [*dino_layers.rules(config), *dino_heads.rules(config, HEADS)],
    ignored=(dino_layers.OTHER_NETWORK, r"(dino|ibot_patch)_loss\..*"),
    options=(*dino_layers.TRAINING_OPTIONS, "position_resize"),
    prepare=_prepare,
)
