"""transformers' CLIPModel: config.json, model.safetensors or pytorch_model.bin; read and written.

Towers alone are read, too: CLIPVisionModel and CLIPTextModel, with a projection or without.
"""

from collections.abc import Callable, Mapping

from big_ssl.models import text_transformer, vit
from big_ssl.weights import hf_layers, hf_preprocessing, hf_tokenizer_config
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import (
    CLIP_PIXELS,
    EMBEDDING,
    HALF_PIXELS,
    HEAD,
    IMAGE,
    PLAIN_VIT,
    TEXT,
    Format,
    ModelConfig,
    check_options,
    clip_config,
    clip_tokenizer,
    compare,
    image_config,
    one_side,
    shape_of,
    text_model_config,
)
from big_ssl.weights.rules import LINEAR, SAME, Rule, norm, within

_TOWERS = [
    *within("text_model.", TEXT, hf_layers.TEXT_MODEL),
    *within("vision_model.", IMAGE, hf_layers.VISION_MODEL),
    Rule("vision_model.embeddings.class_embedding", (f"{IMAGE}class_token",), SAME),
    *norm("vision_model.pre_layrnorm", f"{IMAGE}pre_norm"),  # their spelling
]
_PROJECTIONS = dict(image="visual_projection.weight", text="text_projection.weight")

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


def rules(config: ModelConfig) -> list[Rule]:
    """The rules of a CLIP, or of one tower."""
    if config["head"] is None:
        (encoder,) = config["encoders"]
        return [*_TOWERS, Rule(_PROJECTIONS[encoder], (f"{EMBEDDING}projection/kernel",), LINEAR)]
    projections = [
        Rule(name, (f"{HEAD}{encoder}_projection/kernel",), LINEAR) for encoder, name in _PROJECTIONS.items()
    ]
    return [*_TOWERS, *projections, Rule("logit_scale", (f"{HEAD}logit_scale",), SAME)]


def model_config(
    tensors: Mapping,
    files: Mapping[str, dict],
    family: str,
    read_text: Callable[[Mapping, Mapping], tuple[dict, dict]],
) -> ModelConfig:
    """The ModelConfig of a CLIP, or of one of its towers.

    Args:
      tensors: {name: array}.
      files: {file name: JSON}.
      family: see hf_layers.parts.
      read_text: (tensors, text_config) -> (the text encoder's options, the ModelConfig's tokenizer).

    Raises:
      WeightsError: where config.json and the arrays differ.
    """
    text_config, vision_config = hf_layers.parts(files, family)
    has_text = hf_layers.has_tower(tensors, "text_model")
    if has_text and not hf_layers.has_tower(tensors, "vision_model"):
        text, tokenizer = read_text(tensors, text_config)
        tokenizer = hf_tokenizer_config.read(files, tokenizer)
        return text_model_config(text, tokenizer, _lone_projection(tensors, files, "text"))
    image, others = _read_image(tensors, files, vision_config)
    if not has_text:
        dim = _lone_projection(tensors, files, "image")
        if dim is not None:
            others |= dict(embedding_head=dict(embed_dim=dim, bias=False))
        return image_config(image, **others)
    text, tokenizer = read_text(tensors, text_config)
    dim, tokenizer = _projection(tensors, files, "text"), hf_tokenizer_config.read(files, tokenizer)
    return clip_config(dict(kind="vit") | image, text, dim, tokenizer=tokenizer, **others)


def _read_image(tensors, files, vision_config):
    """(the image encoder's options, other keys of the ModelConfig: the preprocessing)."""
    image = vit.CLIP | hf_layers.vision_options(tensors, vision_config, _VISION_DEFAULTS, class_tokens=1)
    image_size = one_side(vision_config.get("image_size", 224))
    default = dict(views=dict(image=CLIP_PIXELS), image_size=image_size, resize="crop floor")
    return image, hf_preprocessing.read(files, default, "CLIPImageProcessor")


def _projection(tensors, files, encoder):
    """The size of the embedding, as config.json states it."""
    dim = shape_of(tensors, _PROJECTIONS[encoder], 2)[0]
    stated = dict(projection_dim=512) | hf_layers.stated(files["config.json"])
    compare("config.json: ", stated, dict(projection_dim=dim))
    return dim


def _lone_projection(tensors, files, encoder):
    """The same of a lone tower; None for a class without a projection."""
    name, architectures = _PROJECTIONS[encoder], files["config.json"].get("architectures") or []
    projects = any(architecture.endswith("WithProjection") for architecture in architectures)
    if architectures and projects != (name in tensors):
        actual = "have" if name in tensors else "lack"
        raise WeightsError(f"config.json: architectures is {architectures}; the weights {actual} {name}")
    return _projection(tensors, files, encoder) if name in tensors else None


def read_text(tensors: Mapping, text_config: Mapping) -> dict:
    """A text encoder's options; eot_id is config.json's."""
    text = text_transformer.CLIP | hf_layers.text_options(tensors, text_config, _TEXT_DEFAULTS)
    eot_id = one_side(text_config.get("eos_token_id", 49407))
    if not isinstance(eot_id, int):
        raise WeightsError(f"config.json: text_config.eos_token_id is {eot_id}; it must be one token")
    return text | dict(kind="text_transformer", eot_id=eot_id)


def _read_text(tensors, text_config):
    text = read_text(tensors, text_config)
    # 2 is a mistake in older files; transformers then uses the largest id, as CLIP does.
    text["eot_id"] = text["vocab_size"] - 1 if text["eot_id"] == 2 else text["eot_id"]
    return text, clip_tokenizer(text)


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
        image_size=hf_layers.image_size(config),
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
    config=lambda tensors, files, options: model_config(tensors, files, "clip", _read_text),
    rules=rules,
    ignored=hf_layers.IGNORED,
    weights=hf_layers.WEIGHTS,
    files=hf_layers.FILES,
    prepare=hf_layers.prepare,
    describe=_describe,
    position_resize=hf_layers.position_resize,
)
