"""The image tower of transformers' Tipsv2Model, or its Tipsv2VisionModel: config.json and model.safetensors.

Files have DINOv2's names, which transformers replaces in memory. The tower's register is a second class token
(TIPSv2's, trained with synthetic captions); the pooled output is the first. The text tower is not read.
"""

from collections.abc import Mapping

from big_ssl.models import vit
from big_ssl.weights import dino_layers, hf_layers, hf_preprocessing
from big_ssl.weights.format import Format, ModelConfig, compare, image_config, json_file, shape_of

# Tipsv2VisionConfig's defaults.
_DEFAULTS = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    image_size=448,
    patch_size=14,
    layerscale_value=1.0,
    use_swiglu_ffn=False,
    num_register_tokens=1,
    qkv_bias=True,
)
_REGISTERS = "register_tokens"
# The published preprocessing: pixels from 0 to 1.
_PIXELS = dict(mean=(0.0,) * 3, std=(1.0,) * 3, flip=False)
_PREPROCESSING = dict(views=dict(image=_PIXELS), image_size=448, resize="stretch bilinear")


def _config(tensors, files, options) -> ModelConfig:
    del options
    config = json_file(files, "config.json")
    part = "vision_config." if "vision_config" in config else ""
    stated = _DEFAULTS | hf_layers.stated(config["vision_config"] if part else config)
    swiglu = f"blocks.0.{dino_layers.SWIGLU[0]}.weight" in tensors
    shape = dino_layers.shape(tensors, {}, dino_layers.SWIGLU[1] if swiglu else "mlp.fc2")
    shape |= hf_layers.settings(stated, {}, shape["width"])
    registers = shape_of(tensors, _REGISTERS, 3)[1]
    actual = dict(
        hidden_size=shape["width"],
        num_hidden_layers=shape["depth"],
        use_swiglu_ffn=swiglu,
        num_register_tokens=registers,
        qkv_bias=True,
    )
    if _hidden(stated, shape["width"]) != shape["mlp_dim"]:
        actual |= dict(mlp_ratio=shape["mlp_dim"] / shape["width"])
    compare(f"config.json: {part}", stated, actual)
    channels = shape_of(tensors, "patch_embed.proj.weight", 4)[1]
    side = shape["image_size"] // shape["patch"]
    hf_layers.compare_image(part, stated, shape["patch"], side, channels)
    image = vit.DINOV2 | dict(
        **shape,
        feed_forward="swiglu" if swiglu else "mlp",
        layer_scale=stated["layerscale_value"],
        registers=registers,
        position_resize="bilinear_antialias",
    )
    return image_config(image, **hf_preprocessing.read(files, _PREPROCESSING, "Tipsv2ImageProcessor"))


def _hidden(stated, width):
    """The feed-forward part's width; a SwiGLU has two thirds of an MLP's, in multiples of eight."""
    hidden = int(width * stated["mlp_ratio"])
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if stated["use_swiglu_ffn"] else hidden


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Removes the tower's prefix, and gives its feed-forward part DINOv2's names."""
    del options
    prepared = {}
    for name, array in tensors.items():
        name = name.removeprefix("vision_encoder.")
        if name.startswith("blocks."):
            name = name.replace(".mlp.c_fc.", ".mlp.fc1.").replace(".mlp.c_proj.", ".mlp.fc2.")
        prepared[name] = array
    return prepared


FORMAT = Format(
    config=_config,
    rules=lambda config: dino_layers.rules(config, registers=_REGISTERS),
    # The text tower, and the temperature of the loss.
    ignored=(r"text_encoder\..*", "temperature"),
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=_prepare,
)
