"""open_clip's plain CLIP class: open_clip_config.json beside a safetensors or .bin file; read and written.

The arrays have OpenAI's names. The config contains the activation, the heads and the preprocessing.
"""

from collections.abc import Mapping

from big_ssl.weights import openai_clip
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import CLIP_PIXELS, Format, ModelConfig, json_file

_CONFIG = "open_clip_config.json"
_HEAD_WIDTH = 64

# The supported keys of model_cfg, and those that do not change the computation.
_KNOWN = {
    "model_cfg": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}


def _config(tensors, files, options) -> ModelConfig:
    file = json_file(files, _CONFIG)
    settings = file.get("model_cfg", {})
    vision, text = settings.get("vision_cfg", {}), settings.get("text_cfg", {})
    for part, keys in (("model_cfg", settings), ("vision_cfg", vision), ("text_cfg", text)):
        if unknown := set(keys) - _KNOWN[part]:
            raise WeightsError(
                f"{_CONFIG}: {part}.{min(unknown)} is not supported; only open_clip's plain CLIP is"
            )
    config = openai_clip.infer_config(tensors, _heads(vision, text) | dict(options))
    activation = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    config["encoders"]["text"]["activation"] = activation
    if config["encoders"]["image"]["kind"] == "vit":
        config["encoders"]["image"]["activation"] = activation
    preprocessing = file.get("preprocess_cfg", {})
    resize = _lookup(preprocessing, "resize_mode", dict(shortest="crop", squash="stretch"))
    _lookup(preprocessing, "interpolation", dict(bicubic=None))
    pixels = {key: tuple(preprocessing.get(key, CLIP_PIXELS[key])) for key in ("mean", "std")}
    return config | dict(
        views=dict(image=CLIP_PIXELS | pixels),
        resize=resize,
        image_size=vision.get("image_size", config["image_size"]),
    )


def _heads(vision, text):
    heads = {}
    if isinstance(vision.get("layers"), int) and "width" in vision:
        heads["num_heads"] = vision["width"] // vision.get("head_width", _HEAD_WIDTH)
    if "heads" in text:
        heads["text_num_heads"] = text["heads"]
    return heads


def _lookup(settings, key, table):
    """table[settings[key]]; without the key, the table's first entry."""
    value = settings.get(key, next(iter(table)))
    if value not in table:
        raise WeightsError(f"{_CONFIG}: preprocess_cfg.{key} is {value!r}; there is {', '.join(table)}")
    return table[value]


def _describe(config: ModelConfig) -> dict[str, dict]:
    image, text, head = config["encoders"]["image"], config["encoders"]["text"], config["head"]
    if (
        image["kind"] not in ("vit", "resnet")
        or text["kind"] != "text_transformer"
        or head["logit_bias"] is not None
    ):
        raise WeightsError(f"open_clip: its plain CLIP has no {image['kind']} and {text['kind']} like these")
    activation = text["activation"]
    if activation not in ("quick_gelu", "gelu") or image.get("activation", activation) != activation:
        raise WeightsError(f"open_clip: both towers must have quick_gelu or gelu, not {activation}")
    model = dict(embed_dim=head["embed_dim"], quick_gelu=activation == "quick_gelu")
    model["vision_cfg"] = _describe_vit(image) if image["kind"] == "vit" else _describe_resnet(image)
    model["vision_cfg"]["image_size"] = config["image_size"]
    model["text_cfg"] = dict(
        context_length=text["max_len"],
        vocab_size=text["vocab_size"],
        width=text["width"],
        heads=text["heads"],
        layers=text["depth"],
    ) | _mlp_ratio(text)
    pixels = {key: list(config["views"]["image"][key]) for key in ("mean", "std")}
    resize = "shortest" if config["resize"] == "crop" else "squash"
    return {
        _CONFIG: dict(
            model_cfg=model, preprocess_cfg=dict(**pixels, interpolation="bicubic", resize_mode=resize)
        )
    }


def _describe_vit(image):
    return dict(
        layers=image["depth"],
        width=image["width"],
        patch_size=image["patch"],
        head_width=image["width"] // image["heads"],
    ) | _mlp_ratio(image)


def _describe_resnet(image):
    return dict(layers=list(image["blocks"]), width=image["width"], patch_size=None)


def _mlp_ratio(tower):
    mlp_dim = tower["mlp_dim"] or 4 * tower["width"]
    return {} if mlp_dim == 4 * tower["width"] else dict(mlp_ratio=mlp_dim / tower["width"])


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Removes "text." from the text tower's names, and reshapes a logit scale of shape (1,) to ()."""
    del options
    names = (
        "token_embedding.",
        "positional_embedding",
        "transformer.",
        "ln_final.",
        "text_projection",
        "attn_mask",
    )
    prepared = {}
    for name, array in tensors.items():
        short = name.removeprefix("text.")
        prepared[short if short.startswith(names) else name] = array
    if "logit_scale" in prepared:
        prepared["logit_scale"] = prepared["logit_scale"].reshape(prepared["logit_scale"].shape[1:])
    return prepared


FORMAT = Format(
    config=_config,
    rules=openai_clip.rules,
    ignored=openai_clip.IGNORED,
    weights=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    files=(_CONFIG,),
    options=openai_clip.HEADS,
    prepare=_prepare,
    describe=_describe,
)
