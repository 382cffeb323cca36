"""Shared by transformers' formats: rules for CLIP's and SigLIP's layers, and their JSON files."""

from collections.abc import Mapping

import numpy as np

from big_ssl.data.preprocessing import parse_resize
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import ModelConfig, count, grid_side, json_file, shape_of
from big_ssl.weights.rules import CONVOLUTION, SAME, Rule, linear, norm, within

LAYERS = within(
    "encoder.layers.{i}.",
    "layer{i}/",
    [
        *norm("layer_norm1", "attention_norm"),
        *linear("self_attn.q_proj", "query"),
        *linear("self_attn.k_proj", "key"),
        *linear("self_attn.v_proj", "value"),
        *linear("self_attn.out_proj", "out"),
        *norm("layer_norm2", "mlp_norm"),
        *linear("mlp.fc1", "mlp_in"),
        *linear("mlp.fc2", "mlp_out"),
    ],
)
TEXT_MODEL = [
    Rule("embeddings.token_embedding.weight", ("token/embedding",), SAME),
    Rule("embeddings.position_embedding.weight", ("position_embedding",), SAME),
    *LAYERS,
    *norm("final_layer_norm", "final_norm"),
]
VISION_MODEL = [
    Rule("embeddings.patch_embedding.weight", ("patch_embedding/kernel",), CONVOLUTION),
    Rule("embeddings.position_embedding.weight", ("position_embedding",), SAME),
    *LAYERS,
    *norm("post_layernorm", "final_norm"),
]
# Buffers in older files, which later versions do not save.
IGNORED = (r".*\.embeddings\.position_ids",)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FILES = ("config.json", "preprocessor_config.json")

ACTIVATIONS = dict(quick_gelu="quick_gelu", gelu="gelu", gelu_pytorch_tanh="gelu_tanh")


def parts(files: Mapping[str, dict]) -> tuple[dict, dict]:
    """(text_config, vision_config) of config.json, which omits the classes' defaults."""
    config = json_file(files, "config.json")
    return config.get("text_config") or {}, config.get("vision_config") or {}


def layers(tensors: Mapping, model: str, width: int, config: Mapping, defaults: Mapping) -> dict:
    """Infers a transformer's options.

    Args:
      tensors: {name: array}.
      model: the tower's prefix, "text_model" or "vision_model".
      width: its width.
      config: its part of config.json.
      defaults: see `settings`.

    Returns:
      The options width, depth, mlp_dim, heads, activation and epsilon.
    """
    return dict(
        width=width,
        depth=count(tensors, rf"{model}\.encoder\.layers\.(\d+)\."),
        mlp_dim=shape_of(tensors, f"{model}.encoder.layers.0.mlp.fc1.weight", 2)[0],
        **settings(config, defaults),
    )


def settings(config: Mapping, defaults: Mapping) -> dict:
    """Our options heads, activation and epsilon from config.json's num_attention_heads, hidden_act and
    layer_norm_eps; defaults: the config class's defaults of these three."""
    config = {**defaults, **{key: config[key] for key in defaults if key in config}}
    if config["hidden_act"] not in ACTIVATIONS:
        raise WeightsError(
            f"config.json: hidden_act {config['hidden_act']!r}; there are {', '.join(ACTIVATIONS)}"
        )
    return dict(
        heads=config["num_attention_heads"],
        activation=ACTIVATIONS[config["hidden_act"]],
        epsilon=config["layer_norm_eps"],
    )


def text_shape(tensors: Mapping) -> tuple[int, int, int]:
    """(vocabulary size, width, positions) of the text model."""
    vocab_size, width = shape_of(tensors, "text_model.embeddings.token_embedding.weight", 2)
    return vocab_size, width, shape_of(tensors, "text_model.embeddings.position_embedding.weight", 2)[0]


def vision_shape(tensors: Mapping, class_tokens: int) -> tuple[int, int, int]:
    """(width, patch, patches along a side) of the vision model."""
    width, _, _, patch = shape_of(tensors, "vision_model.embeddings.patch_embedding.weight", 4)
    table = "vision_model.embeddings.position_embedding.weight"
    return width, patch, grid_side(shape_of(tensors, table, 2)[0] - class_tokens, table)


def pixels(files: Mapping[str, dict], default: dict) -> dict:
    """The mean and standard deviation in preprocessor_config.json, or `default` without it."""
    settings = files.get("preprocessor_config.json", {})
    values = {key: settings.get(f"image_{key}", default[key]) for key in ("mean", "std")}
    return default | {key: tuple(value) for key, value in values.items()}


def describe_layers(encoder: Mapping) -> dict:
    """The keys that text_config and vision_config share, from an encoder's options."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return dict(
        hidden_size=encoder["width"],
        intermediate_size=encoder["mlp_dim"] or 4 * encoder["width"],
        num_hidden_layers=encoder["depth"],
        num_attention_heads=encoder["heads"],
        hidden_act=names[encoder["activation"]],
        layer_norm_eps=encoder["epsilon"],
    )


# Pillow's numbers for its filters.
_RESAMPLE = dict(bicubic=3, bilinear=2)


def read_preprocessing(files: Mapping[str, dict], default: ModelConfig) -> ModelConfig:
    """The keys views, image_size and resize of a ModelConfig, from preprocessor_config.json.

    default: these keys, used without the file and for settings that older files lack.
    """
    settings = files.get("preprocessor_config.json")
    if settings is None:
        return default
    filters = {number: name for name, number in _RESAMPLE.items()}
    number = settings.get("resample", _RESAMPLE[parse_resize(default["resize"], 0).filter])
    if number not in filters:
        raise WeightsError(f"preprocessor_config.json: resample is {number}; 2 and 3 are known")
    size, resize = _side(settings, "size"), "stretch"
    image_size = _side(settings, "crop_size") if settings.get("do_center_crop") else size
    if settings.get("do_center_crop") and not _has_both_sides(settings["size"]):
        resize = "crop"
    resize += "" if image_size == size else f" {size}"
    resize += "" if filters[number] == "bicubic" else f" {filters[number]}"
    view = pixels(files, default["views"]["image"])
    return dict(views=dict(image=view), image_size=image_size, resize=resize)


def _has_both_sides(size):
    return isinstance(size, dict) and "height" in size


def _side(settings, key):
    """The side in a number, {"shortest_edge": number}, or {"height": number, "width": the same}."""
    value = settings.get(key)
    sides = set(value.values()) if isinstance(value, dict) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise WeightsError(f"preprocessor_config.json: {key} is {value}; it must contain one side")
    return side


def describe_preprocessing(config: ModelConfig, processor: str) -> dict:
    """preprocessor_config.json, for transformers' image processor class `processor`."""
    size, view = config["image_size"], config["views"]["image"]
    mode, side, filter_ = parse_resize(config["resize"], size)
    square = dict(height=size, width=size)
    return dict(
        do_resize=True,
        size=dict(shortest_edge=side) if mode == "crop" else dict(height=side, width=side),
        resample=_RESAMPLE[filter_],
        do_center_crop=mode == "crop" or side != size,
        crop_size=square,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=np.broadcast_to(view["mean"], 3).tolist(),
        image_std=np.broadcast_to(view["std"], 3).tolist(),
        do_convert_rgb=True,
        image_processor_type=processor,
    )
