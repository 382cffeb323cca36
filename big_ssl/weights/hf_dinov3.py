"""transformers' DINOv3ViTModel: config.json, model.safetensors or pytorch_model.bin; read and written.

Shifts and jitter of positions (pos_embed_shift, pos_embed_jitter) are of training alone, and not read.
"""

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
    count,
    image_config,
    json_file,
    one_side,
    shape_of,
)
from big_ssl.weights.rules import CONVOLUTION, SAME, Rule, leading, linear, norm, within

_REGISTERS = "embeddings.register_tokens"
_EMBEDDINGS = [
    Rule("embeddings.cls_token", ("class_token",), leading(2)),
    Rule(hf_images.MASK_TOKEN, ("mask_token",), leading(2)),
    Rule(_REGISTERS, ("registers",), leading(1)),
    Rule("embeddings.patch_embeddings.weight", ("patch_embedding/kernel",), CONVOLUTION),
    Rule("embeddings.patch_embeddings.bias", ("patch_embedding/bias",), SAME),
    *norm("norm", "final_norm"),
]
_LAYER = [
    *norm("norm1", "attention_norm"),
    *linear("attention.q_proj", "query"),
    *linear("attention.k_proj", "key"),
    *linear("attention.v_proj", "value"),
    *linear("attention.o_proj", "out"),
    Rule("layer_scale1.lambda1", ("attention_scale",), SAME),
    *norm("norm2", "mlp_norm"),
    *linear("mlp.gate_proj", "mlp_gate"),
    *linear("mlp.up_proj", "mlp_in"),
    *linear("mlp.down_proj", "mlp_out"),
    Rule("layer_scale2.lambda1", ("mlp_scale",), SAME),
]
_RULES = within("", IMAGE, [*_EMBEDDINGS, *within("layer.{i}.", "layer{i}/", _LAYER)])

# DINOv3ViTConfig's defaults.
_DEFAULTS = dict(
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=6,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    patch_size=16,
    num_register_tokens=0,
    rope_theta=100.0,
    layerscale_value=1.0,
    use_gated_mlp=False,
    query_bias=True,
    key_bias=False,
    value_bias=True,
)
_BIASES = dict(q="query_bias", k="key_bias", v="value_bias")
# The published preprocessing; what the class fixes.
_PREPROCESSING = dict(views=dict(image=IMAGENET_PIXELS), image_size=224, resize="stretch bilinear")
_FIXED = dict(class_token=True, pre_norm=False, patch_bias=True, pooling="cls", mask_token=True)


def _config(tensors, files, options) -> ModelConfig:
    del options
    config = json_file(files, "config.json")
    stated = _DEFAULTS | hf_layers.stated(config)
    width, channels, _, patch = shape_of(tensors, "embeddings.patch_embeddings.weight", 4)
    gated = "layer.0.mlp.gate_proj.weight" in tensors
    qkv_bias = "".join(letter for letter in _BIASES if f"layer.0.attention.{letter}_proj.bias" in tensors)
    shape = dict(
        patch=patch,
        width=width,
        depth=count(tensors, r"layer\.(\d+)\."),
        mlp_dim=shape_of(tensors, "layer.0.mlp.up_proj.weight", 2)[0],
        registers=shape_of(tensors, _REGISTERS, 3)[1] if _REGISTERS in tensors else 0,
    )
    hf_layers.compare_shape("", stated, shape)
    actual = dict(patch_size=patch, num_register_tokens=shape["registers"], use_gated_mlp=gated)
    actual |= {key: letter in qkv_bias for letter, key in _BIASES.items()} | dict(num_channels=channels)
    compare("config.json: ", stated | dict(patch_size=one_side(stated["patch_size"])), actual)
    image = vit.DINOV3 | dict(
        **shape,
        **hf_layers.settings(_activation(stated, gated), {}, width),
        feed_forward="swiglu" if gated else "mlp",
        qkv_bias=qkv_bias,
        layer_scale=stated["layerscale_value"],
        rope_base=stated["rope_theta"],
        # Here, null is no rescaling.
        rope_rescale=config.get("pos_embed_rescale", 2.0) or 1.0,
    )
    return image_config(image, **hf_preprocessing.read(files, _PREPROCESSING, "DINOv3ViTImageProcessor"))


def _activation(stated, gated):
    """`stated` with the activation of a feed-forward part that is not gated; the gate's must be SiLU."""
    if gated and stated["hidden_act"] != "silu":
        raise WeightsError(
            f"config.json: hidden_act is {stated['hidden_act']!r}; with use_gated_mlp it is 'silu'"
        )
    return stated | dict(hidden_act="gelu") if gated else stated


def _describe(config: ModelConfig) -> dict[str, dict]:
    image = config["encoders"]["image"]
    rope = dict(rope_dtype="float32", rope_side=None)
    check_options("hf_dinov3", "image", image, "DINOv3ViTModel", _FIXED | rope)
    for key in ("rope_base", "layer_scale"):
        if image[key] is None:
            raise WeightsError(f"hf_dinov3: image.{key} is None; a DINOv3ViTModel has one")
    gated = image["feed_forward"] == "swiglu"
    described = hf_layers.describe_layers(image) | dict(
        model_type="dinov3_vit",
        architectures=["DINOv3ViTModel"],
        intermediate_size=image["mlp_dim"]
        or FEED_FORWARDS[image["feed_forward"]].default_dim(image["width"]),
        image_size=config["image_size"],
        patch_size=image["patch"],
        rope_theta=image["rope_base"],
        layerscale_value=image["layer_scale"],
        use_gated_mlp=gated,
        num_register_tokens=image["registers"],
        pos_embed_rescale=None if image["rope_rescale"] == 1 else image["rope_rescale"],
        **{key: letter in image["qkv_bias"] for letter, key in _BIASES.items()},
    )
    described |= dict(hidden_act="silu") if gated else {}
    processing = hf_preprocessing.describe(config, "DINOv3ViTImageProcessor")
    return {"config.json": described, "preprocessor_config.json": processing}


def _prepare(tensors, options):
    """Names in memory are those of files, but for a prefix of the layers; there may be no registers."""
    tensors = hf_images.without_prefix("model.")(tensors, options)
    return {name: array for name, array in tensors.items() if array.size}


FORMAT = Format(
    config=_config,
    rules=lambda config: _RULES,
    ignored=(r"rope_embeddings\.inv_freq",),
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=_prepare,
    describe=_describe,
    encoders=("image",),
)
