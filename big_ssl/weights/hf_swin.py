"""transformers' SwinModel, read and written, and Swinv2Model, read: config.json, model.safetensors or
pytorch_model.bin.

transformers 5 has other names in memory than the files of its hub have; both are read, and the latter are
written. The poolers are means over all positions, as ours.
"""

import re
from collections.abc import Mapping

from big_ssl.weights import hf_images, hf_layers, hf_preprocessing, swin_layers
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import (
    IMAGENET_PIXELS,
    Format,
    ModelConfig,
    check_options,
    compare,
    image_config,
    json_file,
    one_side,
    shape_of,
)
from big_ssl.weights.rules import LINEAR, SAME, Rule, linear, norm
from big_ssl.weights.swin_layers import LOG_SCALE, Names

_NAMES = Names(
    projection="embeddings.patch_embeddings.projection",
    patch_norm="embeddings.norm",
    mask_token="embeddings.mask_token",
    stages="encoder.layers.",
    final_norm="layernorm",
    table="attention.self.relative_position_bias_table",
    mlp_in="intermediate.dense",
    log_scale="attention.self.logit_scale",
)
_COMMON = [
    *norm("layernorm_before", "attention_norm"),
    *linear("attention.self.query", "query"),
    *linear("attention.self.value", "value"),
    *linear("attention.output.dense", "out"),
    *norm("layernorm_after", "mlp_norm"),
    *linear("intermediate.dense", "mlp_in"),
    *linear("output.dense", "mlp_out"),
]
_BIAS_MLP = "attention.self.continuous_position_bias_mlp"
_BLOCKS = {
    1: [*_COMMON, *linear("attention.self.key", "key"), Rule(_NAMES.table, ("position_bias/table",), SAME)],
    2: [
        *_COMMON,
        Rule("attention.self.key.weight", ("key/kernel",), LINEAR),
        Rule(_NAMES.log_scale, ("log_scale",), LOG_SCALE),
        *linear(f"{_BIAS_MLP}.0", "position_bias/hidden"),
        Rule(f"{_BIAS_MLP}.2.weight", ("position_bias/out/kernel",), LINEAR),
    ],
}
# The names of transformers 5 in memory: (pattern, the hub's).
_RENAMED = (
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)

# Both config classes' defaults.
_DEFAULTS = dict(
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    mlp_ratio=4.0,
    image_size=224,
    patch_size=4,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
    qkv_bias=True,
    use_absolute_embeddings=False,
)
# What models.swin fixes. transformers' layer_norm_eps is not that of its embeddings, which is always 1e-5.
_FIXED = dict(patch_size=4, layer_norm_eps=1e-5, qkv_bias=True, use_absolute_embeddings=False)


def _config(tensors, files, options) -> ModelConfig:
    del options
    file = _DEFAULTS | hf_layers.stated(json_file(files, "config.json"))
    for key, value in _FIXED.items():
        if one_side(file[key]) != value:
            raise WeightsError(f"config.json: {key} is {file[key]!r}; only {value!r} is read")
    image = swin_layers.shape(tensors, _NAMES)
    actual = dict(embed_dim=image["width"], depths=image["depths"], num_heads=image["heads"])
    compare("config.json: ", file, actual | dict(mlp_ratio=image["mlp_ratio"]))
    hf_layers.compare_channels("", file, shape_of(tensors, f"{_NAMES.projection}.weight", 4)[1])
    if file["hidden_act"] not in hf_layers.ACTIVATIONS:
        raise WeightsError(f"config.json: hidden_act {file['hidden_act']!r} is not known")
    size = one_side(file["image_size"])
    if not isinstance(size, int) or not isinstance(file["window_size"], int):
        raise WeightsError(f"config.json: image_size is {size} and window_size {file['window_size']}")
    image |= dict(activation=hf_layers.ACTIVATIONS[file["hidden_act"]]) | _windows(image, file, size)
    default = dict(views=dict(image=IMAGENET_PIXELS), image_size=size, resize="stretch")
    return image_config(image, **hf_preprocessing.read(files, default, "ViTImageProcessor"))


def _windows(image, file, size):
    """The options window and pretrained_window."""
    if image["version"] == 1:
        compare("config.json: ", file, dict(window_size=image["window"]))
        return {}
    stages = len(image["depths"])
    pretrained = file.get("pretrained_window_sizes", [0] * stages)
    return dict(
        window=swin_layers.clamped(file["window_size"], size, stages),
        pretrained_window=swin_layers.one_or_all(pretrained),
    )


def _describe(config: ModelConfig) -> dict[str, dict]:
    image, size = config["encoders"]["image"], config["image_size"]
    required = dict(
        kind="swin", version=1, embedding="patch", clamp_window=True, epsilon=_FIXED["layer_norm_eps"]
    )
    check_options("hf_swin", "image", image, "SwinModel", required)
    if not isinstance(image["window"], int):
        raise WeightsError(f"hf_swin: image.window is {image['window']}; a SwinModel has one for all stages")
    _check_maps(image, size)
    names = {ours: theirs for theirs, ours in hf_layers.ACTIVATIONS.items()}
    described = dict(
        model_type="swin",
        architectures=["SwinModel"],
        image_size=size,
        patch_size=_FIXED["patch_size"],
        embed_dim=image["width"],
        depths=list(image["depths"]),
        num_heads=list(image["heads"]),
        window_size=image["window"],
        mlp_ratio=image["mlp_ratio"],
        drop_path_rate=image["drop_path"],
        hidden_act=names[image["activation"]],
        layer_norm_eps=image["epsilon"],
        hidden_size=image["width"] * 2 ** (len(image["depths"]) - 1),
        encoder_stride=4 * 2 ** (len(image["depths"]) - 1),
    )
    processing = hf_preprocessing.describe(config, hf_preprocessing.processor(config))
    return {"config.json": described, "preprocessor_config.json": processing}


def _check_maps(image, size):
    """Raises WeightsError if a window is larger than the last map: there our models read the middle of the
    table of positions, and SwinModel, whose biases are always those of a whole window, fails."""
    stride = 4 * 2 ** (len(image["depths"]) - 1)
    side = -(-size // stride)
    if side < image["window"]:
        raise WeightsError(
            f"hf_swin: image.window is {image['window']}, but the last map of {size} pixels is "
            f"{side} x {side}; a SwinModel takes no map smaller than its windows, so image_size must be "
            f"above {(image['window'] - 1) * stride}"
        )


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Removes a classifier's prefix, and gives names of transformers 5 their hub's spelling."""
    for prefix in ("swin.", "swinv2."):
        tensors = hf_images.without_prefix(prefix)(tensors, options)
    prepared = {}
    for name, array in tensors.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        prepared[name] = array
    return prepared


def _rules(config: ModelConfig) -> list[Rule]:
    image = config["encoders"]["image"]
    return swin_layers.rules(image, _NAMES, _BLOCKS[image["version"]])


def _format(describe=None) -> Format:
    return Format(
        config=_config,
        rules=_rules,
        # Buffers; heads on top, which a ModelConfig does not describe.
        ignored=(
            r".*\.relative_position_index",
            r".*\.relative_coords_table",
            r"classifier\..*",
            r"decoder\..*",
        ),
        weights=hf_layers.WEIGHTS,
        files=hf_layers.FILES,
        prepare=_prepare,
        describe=describe,
        encoders=("image",),
    )


FORMAT = _format(_describe)
FORMAT_V2 = _format()
