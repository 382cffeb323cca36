"""What transformers' CLIP and SigLIP have in common: the names of a layer, and their JSON files."""

from collections.abc import Mapping

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import HALF_PIXELS, Config, count, grid_side, json_file, shape_of
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
# Of older files: buffers, which later versions do not save.
IGNORED = (r".*\.embeddings\.position_ids",)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FILES = ("config.json", "preprocessor_config.json")

ACTIVATIONS = dict(quick_gelu="quick_gelu", gelu="gelu", gelu_pytorch_tanh="gelu_tanh")


def parts(files: Mapping[str, dict]) -> tuple[dict, dict]:
    """(text_config, vision_config) of config.json, which leaves out what is the class's default."""
    config = json_file(files, "config.json")
    return config.get("text_config") or {}, config.get("vision_config") or {}


def layers(tensors: Mapping, model: str, width: int, config: Mapping, defaults: Mapping) -> dict:
    """A tower's depth, heads and so on; defaults: of num_attention_heads, hidden_act, layer_norm_eps."""
    config = {**defaults, **{key: config[key] for key in defaults if key in config}}
    if config["hidden_act"] not in ACTIVATIONS:
        raise WeightsError(
            f"config.json: hidden_act {config['hidden_act']!r}; there are {', '.join(ACTIVATIONS)}"
        )
    return dict(
        width=width,
        depth=count(tensors, rf"{model}\.encoder\.layers\.(\d+)\."),
        heads=config["num_attention_heads"],
        mlp_dim=shape_of(tensors, f"{model}.encoder.layers.0.mlp.fc1.weight", 2)[0],
        activation=ACTIVATIONS[config["hidden_act"]],
        epsilon=config["layer_norm_eps"],
    )


def text_shape(tensors: Mapping) -> tuple[int, int, int]:
    """(vocabulary, width, positions) of the text model."""
    vocab_size, width = shape_of(tensors, "text_model.embeddings.token_embedding.weight", 2)
    return vocab_size, width, shape_of(tensors, "text_model.embeddings.position_embedding.weight", 2)[0]


def vision_shape(tensors: Mapping, class_tokens: int) -> tuple[int, int, int]:
    """(width, patch, patches along a side) of the vision model."""
    width, _, _, patch = shape_of(tensors, "vision_model.embeddings.patch_embedding.weight", 4)
    table = "vision_model.embeddings.position_embedding.weight"
    return width, patch, grid_side(shape_of(tensors, table, 2)[0] - class_tokens, table)


def pixels(files: Mapping[str, dict], default: dict) -> dict:
    """The mean and deviation of preprocessor_config.json, or the published ones without it."""
    settings = files.get("preprocessor_config.json", {})
    found = {key: settings.get(f"image_{key}", default[key]) for key in ("mean", "std")}
    return default | {key: tuple(value) for key, value in found.items()}


def margin(files: Mapping[str, dict], image_size: int) -> dict:
    """dict(shorter_side) where preprocessor_config.json makes images larger than the model sees them."""
    size = files.get("preprocessor_config.json", {}).get("size", image_size)
    shorter_side = size.get("shortest_edge", image_size) if isinstance(size, dict) else size
    return {} if shorter_side == image_size else dict(shorter_side=shorter_side)


def describe_layers(tower: Mapping) -> dict:
    """The part of text_config and vision_config that both have."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return dict(
        hidden_size=tower["width"],
        intermediate_size=tower["mlp_dim"] or 4 * tower["width"],
        num_hidden_layers=tower["depth"],
        num_attention_heads=tower["heads"],
        hidden_act=names[tower["activation"]],
        layer_norm_eps=tower["epsilon"],
    )


def describe_preprocessing(config: Config) -> dict:
    """preprocessor_config.json."""
    size, view = config["image_size"], config["views"]["image"]
    crop = config["resize"] == "crop"
    square = dict(height=size, width=size)
    return dict(
        do_resize=True,
        size=dict(shortest_edge=config.get("shorter_side", size)) if crop else square,
        resample=3,  # Pillow's bicubic
        do_center_crop=crop,
        crop_size=square,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(view["mean"]),
        image_std=list(view["std"]),
        do_convert_rgb=True,
        image_processor_type="CLIPImageProcessor"
        if view["mean"] != HALF_PIXELS["mean"]
        else "SiglipImageProcessor",
    )
