"""open_clip's plain CLIP class: open_clip_config.json beside a safetensors or .bin file; read and written.

The arrays have OpenAI's names. The config contains the activation, the heads and the preprocessing.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_ssl.data.preprocessing import parse_resize
from big_ssl.weights import openai_clip
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import (
    CLIP_PIXELS,
    HEAD,
    PLAIN_VIT,
    Format,
    ModelConfig,
    check_options,
    compare,
    json_file,
    one_side,
    per_channel,
)
from big_ssl.weights.rules import SAME, Rule

_CONFIG = "open_clip_config.json"

# Defaults of open_clip's CLIPVisionCfg, CLIPTextCfg and PreprocessCfg (model.py, transform.py).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vision_cfg": dict(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, image_size=224),
    "text_cfg": dict(context_length=77, vocab_size=49_408, width=512, heads=8, layers=12, mlp_ratio=4.0),
    "preprocess_cfg": dict(
        mean=CLIP_PIXELS["mean"],
        std=CLIP_PIXELS["std"],
        interpolation="bicubic",
        resize_mode="shortest",
        mode="RGB",
    ),
}
_ANY = object()
# Keys of both towers.
_BLOCK = dict(
    ls_init_value=None,
    final_ln_after_pool=False,
    output_tokens=False,
    act_kwargs=None,
    norm_kwargs=None,
    block_type=None,
    qk_norm=False,
    scaled_cosine_attn=False,
    scale_heads=False,
    scale_attn_inner=False,
    scale_attn=False,
    scale_fc=False,
)
# Further keys, with the only value for which the model is open_clip's plain CLIP; _ANY if none matters.
_PLAIN: dict[str, dict[str, Any]] = {
    "model_cfg": dict(
        embed_dim=_ANY,
        quick_gelu=_ANY,
        vision_cfg=_ANY,
        text_cfg=_ANY,
        init_logit_bias=_ANY,
        init_logit_scale=_ANY,
        custom_text=_ANY,  # only puts "text." before the text tower's names
        cast_dtype=_ANY,
        output_dict=_ANY,
        nonscalar_logit_scale=_ANY,
    ),
    "vision_cfg": dict(
        patch_dropout=_ANY,  # in training alone
        attentional_pool=False,
        attn_pooler_queries=_ANY,
        attn_pooler_heads=_ANY,
        no_ln_pre=False,
        pos_embed_type="learnable",
        pool_type="tok",
        timm_model_name=None,
        timm_model_pretrained=_ANY,
        timm_pool=_ANY,
        timm_proj=_ANY,
        timm_proj_bias=_ANY,
        timm_drop=_ANY,
        timm_drop_path=_ANY,
    )
    | _BLOCK,
    "text_cfg": dict(
        tokenizer_mode=None,
        hf_tokenizer_name=None,
        tokenizer_kwargs=None,
        embed_cls=False,
        pad_id=0,
        no_causal_mask=False,
        pool_type="argmax",
        proj_bias=False,
        proj_type="linear",
        hf_model_name=None,
        hf_model_pretrained=_ANY,
        hf_proj_type=_ANY,
        hf_pooler_type=_ANY,
        eos_id=_ANY,
    )
    | _BLOCK,
    # The model's own size decides, as in open_clip; a colour to fill is for other resize modes.
    "preprocess_cfg": dict(size=_ANY, fill_color=_ANY),
}


# The options that a plain CLIP fixes.
_VIT = dict(class_token=True, pre_norm=True, patch_bias=False, pooling="cls") | PLAIN_VIT


def _config(tensors, files, options) -> ModelConfig:
    file = json_file(files, _CONFIG)
    model = _settings(file.get("model_cfg") or {}, "model_cfg")
    vision, text = (_settings(model.get(part) or {}, part) for part in ("vision_cfg", "text_cfg"))
    image_size = _side("vision_cfg.image_size", vision["image_size"])
    preprocessing = _preprocessing(_settings(file.get("preprocess_cfg") or {}, "preprocess_cfg"), image_size)
    config = openai_clip.infer_config(tensors, _heads(vision, text) | dict(options))
    compare(f"{_CONFIG}: model_cfg.", model, dict(embed_dim=config["head"]["embed_dim"]))
    _compare(vision, text, config["encoders"])
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    for encoder in config["encoders"].values():
        if encoder["kind"] != "resnet":
            encoder["activation"] = activation
    if "logit_bias" in tensors:
        config["head"]["logit_bias"] = float(model.get("init_logit_bias") or 0.0)
    return config | preprocessing


def _settings(options, part):
    """A part of the config with its defaults. Raises WeightsError for what makes it no plain CLIP."""
    options = {key: value for key, value in options.items() if value is not None}
    defaults, plain = _DEFAULTS.get(part, {}), _PLAIN[part]
    for key, value in options.items():
        if key not in defaults and key not in plain:
            raise WeightsError(
                f"{_CONFIG}: {part}.{key} is {value!r}, which we do not know; --model.accept={key} ignores it"
            )
        if plain.get(key, _ANY) not in (_ANY, value) and value != {}:
            raise WeightsError(
                f"{_CONFIG}: {part}.{key} is {value!r}; only a plain CLIP is read, with {plain[key]!r} "
                f"(--model.accept={key} ignores it)"
            )
    return defaults | options


def _compare(vision, text, encoders):
    """The config's shapes against those of the arrays."""
    ours = encoders["text"]
    actual = _shape(ours) | dict(context_length=ours["max_len"], vocab_size=ours["vocab_size"])
    compare(f"{_CONFIG}: text_cfg.", _with_mlp_width(text), actual)
    ours = encoders["image"]
    if ours["kind"] == "resnet":
        # An attention pool of another head width than 64 is not ours.
        actual = dict(layers=list(ours["blocks"]), width=ours["width"], head_width=64)
    else:
        vision = vision | dict(patch_size=_side("vision_cfg.patch_size", vision["patch_size"]))
        actual = _shape(ours) | dict(patch_size=ours["patch"])
    compare(f"{_CONFIG}: vision_cfg.", _with_mlp_width(vision), actual)


def _with_mlp_width(settings):
    return settings | dict(mlp_width=int(settings["width"] * settings["mlp_ratio"]))


def _shape(transformer):
    """A transformer's shape in open_clip's words."""
    return dict(layers=transformer["depth"], width=transformer["width"], mlp_width=transformer["mlp_dim"])


def _side(key, value):
    """A side, or two equal ones."""
    side = one_side(value)
    if not isinstance(side, int):
        raise WeightsError(f"{_CONFIG}: {key} is {value}; it must be one side, or two equal ones")
    return side


def _preprocessing(settings, image_size):
    mode = _lookup(settings, "resize_mode", dict(shortest="crop", squash="stretch"))
    filter_ = _lookup(settings, "interpolation", dict(bicubic="", bilinear=" bilinear", random=""))
    _lookup(settings, "mode", dict(RGB=None))
    pixels = {key: per_channel(f"preprocess_cfg.{key}", settings[key]).tolist() for key in ("mean", "std")}
    view = CLIP_PIXELS | {key: tuple(value) for key, value in pixels.items()}
    return dict(views=dict(image=view), resize=mode + filter_, image_size=image_size)


def _heads(vision, text):
    heads = dict(text_num_heads=text["heads"])
    if isinstance(vision["layers"], int):
        heads["num_heads"] = vision["width"] // vision["head_width"]
    return heads


def _lookup(settings, key, table):
    if settings[key] not in table:
        raise WeightsError(
            f"{_CONFIG}: preprocess_cfg.{key} is {settings[key]!r}; there is {', '.join(table)}"
        )
    return table[settings[key]]


def _describe(config: ModelConfig) -> dict[str, dict]:
    image, text, head = config["encoders"]["image"], config["encoders"]["text"], config["head"]
    if image["kind"] not in ("vit", "resnet") or text["kind"] != "text_transformer":
        raise WeightsError(f"open_clip: its plain CLIP has no {image['kind']} and {text['kind']} like these")
    if image["kind"] == "vit":
        check_options("open_clip", "image", image, "CLIP", _VIT)
    check_options("open_clip", "text", text, "CLIP", dict(causal=True, pooling="eot"))
    _check_text(text, config["tokenizer"])
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
    if head["logit_bias"] is not None:
        model["init_logit_bias"] = head["logit_bias"]
    return {_CONFIG: dict(model_cfg=model, preprocess_cfg=_describe_preprocessing(config))}


def _check_text(text, tokenizer):
    """open_clip reads the features of the largest id, which ends the text of its own tokenizer alone."""
    if text["eot_id"] not in (None, text["vocab_size"] - 1):
        raise WeightsError(
            f"open_clip: text.eot_id is {text['eot_id']}; open_clip reads the features of the largest id, "
            f"{text['vocab_size'] - 1}"
        )
    if tokenizer["kind"] != "clip_bpe":
        raise WeightsError(f"open_clip: tokenizer.kind is {tokenizer['kind']!r}; a plain CLIP has 'clip_bpe'")


def _describe_preprocessing(config):
    mode, side, filter_, _ = parse_resize(config["resize"], config["image_size"])
    if side != config["image_size"] or filter_ not in ("bicubic", "bilinear"):
        raise WeightsError(
            f"open_clip: resize is {config['resize']!r}; open_clip resizes to image_size, "
            f"{config['image_size']}, bicubic or bilinear"
        )
    pixels = {key: np.broadcast_to(config["views"]["image"][key], 3).tolist() for key in ("mean", "std")}
    return dict(**pixels, interpolation=filter_, resize_mode=dict(crop="shortest", stretch="squash")[mode])


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
    """The ratio whose product with the width open_clip rounds down to the feed-forward's width."""
    width, mlp_dim = tower["width"], tower["mlp_dim"] or 4 * tower["width"]
    ratio = mlp_dim / width
    while int(width * ratio) < mlp_dim:
        ratio = math.nextafter(ratio, math.inf)
    return {} if ratio == 4 else dict(mlp_ratio=ratio)


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Removes "text." from the text tower's names, and reshapes a logit scale or bias of shape (1,) to ()."""
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
    for name in ("logit_scale", "logit_bias"):
        if name in prepared:
            prepared[name] = prepared[name].reshape(prepared[name].shape[1:])
    return prepared


def _rules(config: ModelConfig) -> list[Rule]:
    bias = [Rule("logit_bias", (f"{HEAD}logit_bias",), SAME)]
    return openai_clip.rules(config) + (bias if config["head"]["logit_bias"] is not None else [])


FORMAT = Format(
    config=_config,
    rules=_rules,
    ignored=openai_clip.IGNORED,
    weights=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    files=(_CONFIG,),
    options=openai_clip.HEADS,
    prepare=_prepare,
    describe=_describe,
    position_resize=lambda image: "bicubic_antialias",
)
