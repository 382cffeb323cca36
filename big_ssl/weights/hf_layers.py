"""Shared by transformers' formats: rules for CLIP's and SigLIP's layers, and their config.json."""

from collections.abc import Mapping

from big_ssl.weights import hf_preprocessing, hf_tokenizer_config
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import compare, count, grid_side, json_file, one_side, shape_of
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
FILES = ("config.json", *hf_preprocessing.FILES, hf_tokenizer_config.FILE)

# Our options of a transformer's shape, and config.json's keys for them.
_SHAPE = dict(width="hidden_size", depth="num_hidden_layers", mlp_dim="intermediate_size")
ACTIVATIONS = dict(quick_gelu="quick_gelu", gelu="gelu", gelu_pytorch_tanh="gelu_tanh")


# Two families whose arrays have the same names: model_type alone tells them apart.
_SAME_ARRAYS = ("clip", "metaclip_2")


def parts(files: Mapping[str, dict], family: str) -> tuple[dict, dict]:
    """(text_config, vision_config) of config.json, which omits the classes' defaults, without nulls.

    Older files of CLIP have text_config_dict and vision_config_dict, which transformers reads in place of
    these. The config of a tower alone is one of the two.

    Args:
      files: {file name: JSON}.
      family: the model_type of the whole model; older files leave it out.

    Raises:
      WeightsError: without config.json, or for one of another family.
    """
    config = json_file(files, "config.json")
    types = family, f"{family}_text_model", f"{family}_vision_model"
    model_type = config.get("model_type") or family
    # CLIP's type over SigLIP's arrays, which have names of their own, is no contradiction that misleads.
    if model_type not in types and (family, model_type) != ("siglip", "clip"):
        raise WeightsError(f"config.json: model_type is {model_type!r}; it must be {', '.join(types)}")
    if model_type in types[1:]:
        return (stated(config), {}) if model_type == types[1] else ({}, stated(config))
    suffixes = ("_dict", "") if family in _SAME_ARRAYS else ("",)
    text, vision = (
        next((config[name + suffix] for suffix in suffixes if config.get(name + suffix)), {})
        for name in ("text_config", "vision_config")
    )
    return stated(text), stated(vision)


def stated(config: Mapping) -> dict:
    """A config without the keys that are null, which stand for the class's default."""
    return {key: value for key, value in config.items() if value is not None}


def prepare(tensors: Mapping, options: Mapping) -> Mapping:
    """A Format's `prepare`: adds the prefix of a lone tower's names, which transformers 5 leaves out."""
    del options
    for tower, table in dict(vision_model="patch_embedding", text_model="token_embedding").items():
        if f"embeddings.{table}.weight" in tensors:
            return {f"{tower}.{name}": array for name, array in tensors.items()}
    return tensors


def has_tower(tensors: Mapping, tower: str) -> bool:
    """Whether there is the tower "text_model" or "vision_model"; one may be published without the other."""
    return any(name.startswith(f"{tower}.") for name in tensors)


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

    Raises:
      WeightsError: where config.json and the arrays differ.
    """
    shape = dict(
        width=width,
        depth=count(tensors, rf"{model}\.encoder\.layers\.(\d+)\."),
        mlp_dim=shape_of(tensors, f"{model}.encoder.layers.0.mlp.fc1.weight", 2)[0],
    )
    compare_shape(model.replace("model", "config."), {**defaults, **config}, shape)
    return shape | settings(config, defaults, width)


def compare_shape(part: str, stated: Mapping, shape: Mapping) -> None:
    """Compares the width, the depth and the feed-forward's width with config.json's keys for them."""
    compare(f"config.json: {part}", stated, {theirs: shape[ours] for ours, theirs in _SHAPE.items()})


def settings(config: Mapping, defaults: Mapping, width: int) -> dict:
    """Our options heads, activation and epsilon from config.json's num_attention_heads, hidden_act and
    layer_norm_eps; defaults: the config class's defaults; width: which the heads must divide."""
    config = {**defaults, **config}
    if config["hidden_act"] not in ACTIVATIONS:
        raise WeightsError(
            f"config.json: hidden_act {config['hidden_act']!r}; there are {', '.join(ACTIVATIONS)}"
        )
    heads = config["num_attention_heads"]
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise WeightsError(f"config.json: num_attention_heads {heads!r} does not divide the width {width}")
    return dict(heads=heads, activation=ACTIVATIONS[config["hidden_act"]], epsilon=config["layer_norm_eps"])


def text_options(tensors: Mapping, config: Mapping, defaults: Mapping) -> dict:
    """Infers a text model's options: vocab_size, max_len, and those of `layers`; arguments as there."""
    vocab_size, width = shape_of(tensors, "text_model.embeddings.token_embedding.weight", 2)
    max_len = shape_of(tensors, "text_model.embeddings.position_embedding.weight", 2)[0]
    compare_text("text_config.", {**defaults, **config}, vocab_size, max_len)
    return dict(vocab_size=vocab_size, max_len=max_len) | layers(
        tensors, "text_model", width, config, defaults
    )


def vision_options(tensors: Mapping, config: Mapping, defaults: Mapping, class_tokens: int) -> dict:
    """Infers a vision model's options: those of models.vit that the files determine.

    tensors, config, defaults: as in `layers`. class_tokens: rows of the position table that are no patches'.
    Raises WeightsError where config.json and the arrays differ.
    """
    width, channels, _, patch = shape_of(tensors, "vision_model.embeddings.patch_embedding.weight", 4)
    table = "vision_model.embeddings.position_embedding.weight"
    side = grid_side(shape_of(tensors, table, 2)[0] - class_tokens, table)
    shape = layers(tensors, "vision_model", width, config, defaults)
    compare_image("vision_config.", {**defaults, **config}, patch, side, channels)
    return dict(patch=patch, image_size=patch * side, position_resize=position_resize({})) | shape


def compare_text(part: str, stated: Mapping, vocab_size: int, max_len: int) -> None:
    """Compares a part of config.json with the text model's tables of tokens and positions."""
    actual = dict(vocab_size=vocab_size, max_position_embeddings=max_len)
    compare(f"config.json: {part}", stated, actual)


def compare_image(part: str, stated: Mapping, patch: int, side: int, channels: int) -> None:
    """Compares a part of config.json with the kernel of the patches and the position table.

    An image need not be whole patches: its margin is left out.

    Args:
      part: what stands before the key in the message.
      stated: that part.
      patch: the kernel's side.
      side: the table's.
      channels: the kernel's.

    Raises:
      WeightsError: where they differ.
    """
    found = {key: one_side(stated[key]) for key in ("patch_size", "image_size") if key in stated}
    size = found.get("image_size")
    fits = isinstance(size, int) and size // patch == side
    compare(f"config.json: {part}", found, dict(patch_size=patch, image_size=size if fits else patch * side))
    compare_channels(part, stated, channels)


def compare_channels(part: str, stated: Mapping, channels: int) -> None:
    """Compares a part of config.json with the channels of the first kernel."""
    compare(f"config.json: {part}", stated, dict(num_channels=channels))


def position_resize(image: Mapping) -> str:
    """How the classes with a plain position table resize it; see weights.format.Format."""
    del image
    return "bicubic"


def image_size(config: Mapping) -> int:
    """config.json's image_size of a ModelConfig: the images' if the table fits it, else the table's."""
    image, size = config["encoders"]["image"], config["image_size"]
    return size if size // image["patch"] == image["image_size"] // image["patch"] else image["image_size"]


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
