"""transformers' ViTModel: config.json, model.safetensors or pytorch_model.bin; read and written.

Its pooler, a layer on top of the class token, is dropped: our pooled output is the class token, which is how
DINO's and iBOT's weights in this class are used. Exports are for add_pooling_layer=False.
"""

from big_ssl.weights import hf_images, hf_layers, hf_preprocessing
from big_ssl.weights.format import (
    HALF_PIXELS,
    IMAGE,
    Format,
    ModelConfig,
    check_options,
    image_config,
    one_side,
)
from big_ssl.weights.rules import Rule, leading, linear, norm, within

_LAYER = [
    *norm("layernorm_before", "attention_norm"),
    *hf_images.ATTENTION,
    *norm("layernorm_after", "mlp_norm"),
    *linear("intermediate.dense", "mlp_in"),
    *linear("output.dense", "mlp_out"),
]
_MASK_TOKEN = Rule(hf_images.MASK_TOKEN, ("mask_token",), leading(2))
_LAYERS = within("encoder.layer.{i}.", "layer{i}/", _LAYER)
_RULES = within("", IMAGE, [*hf_images.EMBEDDINGS, *_LAYERS, _MASK_TOKEN])

# ViTConfig's defaults.
_DEFAULTS = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    image_size=224,
    patch_size=16,
)
_FIXED = hf_images.FIXED | dict(feed_forward="mlp", layer_scale=None, registers=0)


def _config(tensors, files, options) -> ModelConfig:
    del options
    image = hf_images.shape(tensors, files, "output.dense", _DEFAULTS)
    image |= dict(pooling="cls", kernel_init="dino", position_resize=hf_layers.position_resize(image))
    size = one_side(hf_layers.stated(files["config.json"]).get("image_size", 224))
    default = dict(views=dict(image=HALF_PIXELS), image_size=size, resize="stretch bilinear")
    return image_config(image, **hf_preprocessing.read(files, default, "ViTImageProcessor"))


def _describe(config: ModelConfig) -> dict[str, dict]:
    image = config["encoders"]["image"]
    check_options("hf_vit", "image", image, "ViTModel", _FIXED)
    described = hf_layers.describe_layers(image) | dict(
        model_type="vit",
        architectures=["ViTModel"],
        image_size=hf_layers.image_size(config),
        patch_size=image["patch"],
        encoder_stride=image["patch"],
    )
    processing = hf_preprocessing.describe(config, hf_preprocessing.processor(config))
    return {"config.json": described, "preprocessor_config.json": processing}


FORMAT = Format(
    config=_config,
    rules=lambda config: _RULES,
    # Heads on top of the class token, which a ModelConfig does not describe.
    ignored=(r"pooler\..*", r"classifier\..*"),
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=hf_images.without_prefix("vit."),
    describe=_describe,
    encoders=("image",),
    position_resize=hf_layers.position_resize,
)
