"""transformers' Dinov2Model and Dinov2WithRegistersModel: config.json, model.safetensors or
pytorch_model.bin; read and written."""

from big_ssl.models import vit
from big_ssl.models.transformer import FEED_FORWARDS
from big_ssl.weights import hf_images, hf_layers, hf_preprocessing
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import (
    IMAGE,
    IMAGENET_PIXELS,
    Format,
    ModelConfig,
    check_options,
    compare,
    image_config,
    json_file,
    shape_of,
)
from big_ssl.weights.rules import SAME, Rule, fused, leading, linear, norm, within

_LAYER = [
    *norm("norm1", "attention_norm"),
    *hf_images.ATTENTION,
    Rule("layer_scale1.lambda1", ("attention_scale",), SAME),
    *norm("norm2", "mlp_norm"),
    Rule("layer_scale2.lambda1", ("mlp_scale",), SAME),
]
_FEED_FORWARD = {
    "mlp": [*linear("mlp.fc1", "mlp_in"), *linear("mlp.fc2", "mlp_out")],
    "swiglu": [*fused("mlp.weights_in.", "mlp_gate", "mlp_in"), *linear("mlp.weights_out", "mlp_out")],
}
_TOKENS = [
    Rule(hf_images.MASK_TOKEN, ("mask_token",), leading(1)),
    Rule("embeddings.register_tokens", ("registers",), leading(1)),
]
_CLASSES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}

# Both config classes' defaults.
_DEFAULTS = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    image_size=224,
)
# The published preprocessing.
_PREPROCESSING = dict(views=dict(image=IMAGENET_PIXELS), image_size=224, resize="crop 256 floor")


def _rules(config: ModelConfig) -> list[Rule]:
    feed_forward = _FEED_FORWARD[config["encoders"]["image"]["feed_forward"]]
    layers = within("encoder.layer.{i}.", "layer{i}/", [*_LAYER, *feed_forward])
    return within("", IMAGE, [*hf_images.EMBEDDINGS, *layers, *_TOKENS])


def _config(tensors, files, options) -> ModelConfig:
    del options
    swiglu = "encoder.layer.0.mlp.weights_out.weight" in tensors
    stated = dict(use_swiglu_ffn=False) | hf_layers.stated(json_file(files, "config.json"))
    compare("config.json: ", stated, dict(use_swiglu_ffn=swiglu))
    name = "embeddings.register_tokens"
    registers = shape_of(tensors, name, 3)[1] if name in tensors else 0
    mlp_out = "mlp.weights_out" if swiglu else "mlp.fc2"
    image = vit.DINOV2 | dict(
        **hf_images.shape(tensors, files, mlp_out, _DEFAULTS),
        feed_forward="swiglu" if swiglu else "mlp",
        layer_scale=stated.get("layerscale_value", 1.0),
        registers=registers,
        position_resize=_position_resize(dict(registers=registers)),
    )
    return image_config(image, **hf_preprocessing.read(files, _PREPROCESSING, "BitImageProcessor"))


def _position_resize(image):
    return "bicubic_antialias" if image["registers"] else "bicubic"


def _describe(config: ModelConfig) -> dict[str, dict]:
    image = config["encoders"]["image"]
    model_type = "dinov2_with_registers" if image["registers"] else "dinov2"
    _check(image, _CLASSES[model_type])
    described = hf_layers.describe_layers(image) | dict(
        model_type=model_type,
        architectures=[_CLASSES[model_type]],
        image_size=image["image_size"],
        patch_size=image["patch"],
        mlp_ratio=_mlp_ratio(image),
        layerscale_value=image["layer_scale"],
        use_swiglu_ffn=image["feed_forward"] == "swiglu",
    )
    del described["intermediate_size"]
    described |= (
        dict(num_register_tokens=image["registers"])
        if image["registers"]
        else dict(use_mask_token=image["mask_token"])
    )
    processing = hf_preprocessing.describe(config, "BitImageProcessor")
    return {"config.json": described, "preprocessor_config.json": processing}


def _check(image, model):
    check_options("hf_dinov2", "image", image, model, hf_images.FIXED)
    if image["layer_scale"] is None:
        raise WeightsError(f"hf_dinov2: image.layer_scale is None; a {model} has one")
    if image["registers"]:
        check_options("hf_dinov2", "image", image, model, dict(mask_token=True))


def _mlp_ratio(image):
    """The integer mlp_ratio from which the model classes compute this feed-forward width."""
    width, mlp_dim = image["width"], image["mlp_dim"]
    default_dim = FEED_FORWARDS[image["feed_forward"]].default_dim
    for ratio in range(1, 17):
        hidden = (width * ratio * 2 // 3 + 7) // 8 * 8 if image["feed_forward"] == "swiglu" else width * ratio
        if hidden == (mlp_dim or default_dim(width)):
            return ratio
    raise WeightsError(f"hf_dinov2: image.mlp_dim {mlp_dim} has no integer mlp_ratio to the width {width}")


def _prepare(tensors, options):
    for prefix in ("dinov2.", "dinov2_with_registers."):
        tensors = hf_images.without_prefix(prefix)(tensors, options)
    return tensors


FORMAT = Format(
    config=_config,
    rules=_rules,
    ignored=(r"classifier\..*",),  # Dinov2ForImageClassification's, which a ModelConfig does not describe
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=_prepare,
    describe=_describe,
    encoders=("image",),
    position_resize=_position_resize,
)
