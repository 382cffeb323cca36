"""transformers' SiglipModel, SigLIP 2 of fixed resolution included, SiglipVisionModel or SiglipTextModel:
config.json, model.safetensors or pytorch_model.bin."""

from big_ssl.models import text_transformer, vit
from big_ssl.weights import hf_layers, hf_preprocessing, hf_tokenizer_config
from big_ssl.weights.format import (
    EMBEDDING,
    HALF_PIXELS,
    HEAD,
    IMAGE,
    TEXT,
    Format,
    ModelConfig,
    compare,
    image_config,
    one_side,
    shape_of,
    siglip_config,
    siglip_tokenizer,
    text_model_config,
)
from big_ssl.weights.rules import SAME, Rule, leading, linear, norm, qkv, within

_POOLING = [
    Rule("probe", ("probe",), leading(2)),
    *qkv("attention", ""),
    *norm("layernorm", "mlp_norm"),
    *linear("mlp.fc1", "mlp_in"),
    *linear("mlp.fc2", "mlp_out"),
]
_TOWERS = [
    *within("text_model.", TEXT, hf_layers.TEXT_MODEL),
    *within("vision_model.", IMAGE, hf_layers.VISION_MODEL),
    Rule("vision_model.embeddings.patch_embedding.bias", (f"{IMAGE}patch_embedding/bias",), SAME),
    *within("vision_model.head.", f"{IMAGE}pooling/", _POOLING),
]
_HEAD = [
    *linear("text_model.head", f"{HEAD}text_projection"),
    Rule("logit_scale", (f"{HEAD}logit_scale",), leading(1)),
    Rule("logit_bias", (f"{HEAD}logit_bias",), leading(1)),
]

# SiglipTextConfig's and SiglipVisionConfig's defaults.
_COMMON = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
_TEXT_DEFAULTS = _COMMON | dict(vocab_size=32_000, max_position_embeddings=64)
_VISION_DEFAULTS = _COMMON | dict(image_size=224, patch_size=16)


def _rules(config: ModelConfig) -> list[Rule]:
    return [
        *_TOWERS,
        *(_HEAD if config["head"] is not None else linear("text_model.head", f"{EMBEDDING}projection")),
    ]


def _config(tensors, files, options) -> ModelConfig:
    del options
    text_config, vision_config = hf_layers.parts(files, "siglip")
    has_text = hf_layers.has_tower(tensors, "text_model")
    if has_text and not hf_layers.has_tower(tensors, "vision_model"):
        text = _text(tensors, text_config)
        dim = shape_of(tensors, "text_model.head.weight", 2)[0]
        compare("config.json: ", dict(projection_size=text["width"]) | text_config, dict(projection_size=dim))
        tokenizer = hf_tokenizer_config.read(files, siglip_tokenizer(text))
        return text_model_config(text, tokenizer, dim, bias=True)
    image = vit.SIGLIP | hf_layers.vision_options(tensors, vision_config, _VISION_DEFAULTS, class_tokens=0)
    image_size = one_side(vision_config.get("image_size", 224))
    default = dict(views=dict(image=HALF_PIXELS), image_size=image_size, resize="stretch")
    preprocessing = hf_preprocessing.read(files, default, "SiglipImageProcessor")
    if not has_text:
        return image_config(image, **preprocessing)
    text = _text(tensors, text_config)
    tokenizer = hf_tokenizer_config.read(files, siglip_tokenizer(text))
    return siglip_config(dict(kind="vit") | image, text, tokenizer=tokenizer, **preprocessing)


def _text(tensors, text_config):
    text = text_transformer.SIGLIP | hf_layers.text_options(tensors, text_config, _TEXT_DEFAULTS)
    return dict(kind="text_transformer") | text


FORMAT = Format(
    config=_config,
    rules=_rules,
    ignored=hf_layers.IGNORED,
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=hf_layers.prepare,
)
