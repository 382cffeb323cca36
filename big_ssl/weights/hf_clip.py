"""transformers' CLIPModel: config.json, model.safetensors or pytorch_model.bin; read and written.

A CLIPVisionModel is read alone, as an image encoder. One with a projection is refused: it embeds images where
no texts are.
"""

from big_ssl.models import text_transformer, vit
from big_ssl.weights import hf_layers, hf_preprocessing
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import (
    CLIP_PIXELS,
    HALF_PIXELS,
    HEAD,
    IMAGE,
    PLAIN_VIT,
    TEXT,
    Format,
    ModelConfig,
    check_options,
    clip_config,
    compare,
    image_config,
    one_side,
    shape_of,
)
from big_ssl.weights.rules import LINEAR, SAME, Rule, norm, within

_RULES = [
    *within("text_model.", TEXT, hf_layers.TEXT_MODEL),
    *within("vision_model.", IMAGE, hf_layers.VISION_MODEL),
    Rule("vision_model.embeddings.class_embedding", (f"{IMAGE}class_token",), SAME),
    *norm("vision_model.pre_layrnorm", f"{IMAGE}pre_norm"),  # their spelling
    Rule("visual_projection.weight", (f"{HEAD}image_projection/kernel",), LINEAR),
    Rule("text_projection.weight", (f"{HEAD}text_projection/kernel",), LINEAR),
    Rule("logit_scale", (f"{HEAD}logit_scale",), SAME),
]

# CLIPTextConfig's and CLIPVisionConfig's defaults.
_COMMON = dict(num_hidden_layers=12, hidden_act="quick_gelu", layer_norm_eps=1e-5)
_TEXT_DEFAULTS = _COMMON | dict(
    hidden_size=512,
    intermediate_size=2048,
    num_attention_heads=8,
    vocab_size=49_408,
    max_position_embeddings=77,
)
_VISION_DEFAULTS = _COMMON | dict(
    hidden_size=768, intermediate_size=3072, num_attention_heads=12, image_size=224, patch_size=32
)


def _config(tensors, files, options) -> ModelConfig:
    del options
    text_config, vision_config = hf_layers.parts(files)
    image = vit.CLIP | hf_layers.vision_options(tensors, vision_config, _VISION_DEFAULTS, class_tokens=1)
    image_size = one_side(vision_config.get("image_size", 224))
    default = dict(views=dict(image=CLIP_PIXELS), image_size=image_size, resize="crop floor")
    preprocessing = hf_preprocessing.read(files, default, "CLIPImageProcessor")
    if not hf_layers.has_text(tensors):
        return image_config(image, **preprocessing)
    text = text_transformer.CLIP | hf_layers.text_options(tensors, text_config, _TEXT_DEFAULTS)
    text["eot_id"] = _eot_id(text_config, text["vocab_size"])
    dim = shape_of(tensors, "text_projection.weight", 2)[0]
    stated = dict(projection_dim=512) | hf_layers.stated(files["config.json"])
    compare("config.json: ", stated, dict(projection_dim=dim))
    return clip_config(dict(kind="vit") | image, text, dim, **preprocessing)


def _eot_id(text_config, vocab_size):
    # 2 is a mistake in older files; transformers then uses the largest id, as CLIP does.
    eot_id = one_side(text_config.get("eos_token_id", 49407))
    if not isinstance(eot_id, int):
        raise WeightsError(f"config.json: text_config.eos_token_id is {eot_id}; it must be one token")
    return vocab_size - 1 if eot_id == 2 else eot_id


def _describe(config: ModelConfig) -> dict[str, dict]:
    image, text = config["encoders"]["image"], config["encoders"]["text"]
    _check_is_clip(image, text, config["head"])
    if text["eot_id"] == 2:  # transformers reads the features of the largest id instead
        raise WeightsError("hf_clip: text.eot_id is 2, which a CLIPModel takes for a mistake of older files")
    dim, eot_id = config["head"]["embed_dim"], text["eot_id"]
    text_config = hf_layers.describe_layers(text) | dict(
        model_type="clip_text_model",
        vocab_size=text["vocab_size"],
        max_position_embeddings=text["max_len"],
        projection_dim=dim,
        bos_token_id=None,  # the class's default may be outside the vocabulary
        eos_token_id=text["vocab_size"] - 1 if eot_id is None else eot_id,
    )
    vision_config = hf_layers.describe_layers(image) | dict(
        model_type="clip_vision_model",
        image_size=config["image_size"],
        patch_size=image["patch"],
        projection_dim=dim,
    )
    described = dict(
        model_type="clip",
        architectures=["CLIPModel"],
        projection_dim=dim,
        text_config=text_config,
        vision_config=vision_config,
    )
    return {
        "config.json": described,
        "preprocessor_config.json": hf_preprocessing.describe(config, _processor(config)),
    }


def _processor(config):
    """The image processor class: SigLIP's for SigLIP's mean, otherwise CLIP's."""
    is_clip = tuple(config["views"]["image"]["mean"]) != HALF_PIXELS["mean"]
    return "CLIPImageProcessor" if is_clip else "SiglipImageProcessor"


def _check_is_clip(image, text, head):
    kinds = image["kind"], text["kind"]
    if kinds != ("vit", "text_transformer"):
        raise WeightsError(f"hf_clip holds a vit and a text_transformer, not {kinds[0]} and {kinds[1]}")
    required = {
        "image": (image, dict(class_token=True, pre_norm=True, patch_bias=False, pooling="cls") | PLAIN_VIT),
        "text": (text, dict(causal=True, pooling="eot")),
        "head": (
            head,
            dict(image_projection=True, text_projection_bias=False, temperature_form="log", logit_bias=None),
        ),
    }
    for part, (options, values) in required.items():
        check_options("hf_clip", part, options, "CLIPModel", values)


FORMAT = Format(
    config=_config,
    rules=lambda config: _RULES,
    ignored=hf_layers.IGNORED,
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=hf_layers.prepare,
    describe=_describe,
)
