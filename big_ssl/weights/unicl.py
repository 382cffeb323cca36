"""UniCL's files (.pth): a Swin and CLIP's causal text encoder, of width / 64 heads.

Layout: microsoft/UniCL, model/model.py, in which older files have other prefixes. The temperature starts at
exp(-1).
"""

import math
from collections.abc import Mapping

from big_ssl.models import text_transformer
from big_ssl.weights import openai_clip, swin
from big_ssl.weights.format import HEAD, TEXT, Format, ModelConfig, clip_config, count, shape_of
from big_ssl.weights.rules import SAME, Rule, norm, within

_IMAGE_ENCODER, _TEXT_ENCODER = "image_encoder.", "text_encoder."
# Prefixes of older files.
_OLDER = {
    "visual.": _IMAGE_ENCODER,
    "text.": _TEXT_ENCODER,
    "lang_encoder.": _TEXT_ENCODER,
    "vision_projection": "image_projection",
}
_BLOCKS = "resblocks."
_TEXT = [
    Rule("token_embedding.weight", ("token/embedding",), SAME),
    Rule("positional_embedding", ("position_embedding",), SAME),
    *within(f"{_BLOCKS}{{i}}.", "layer{i}/", openai_clip.LAYER),
    *norm("ln_final", "final_norm"),
]
# Not transposed: UniCL computes x @ projection, as OpenAI's CLIP does.
_HEAD = [
    Rule("image_projection", (f"{HEAD}image_projection/kernel",), SAME),
    Rule("text_projection", (f"{HEAD}text_projection/kernel",), SAME),
    Rule("logit_scale", (f"{HEAD}logit_scale",), SAME),
]
_TEMPERATURE = math.exp(-1)


def _rules(config: ModelConfig) -> list[Rule]:
    image = within(_IMAGE_ENCODER, "", swin.rules(config))
    return [*image, *within(_TEXT_ENCODER, TEXT, _TEXT), *_HEAD]


def _config(tensors, files, options) -> ModelConfig:
    encoder = {
        name.removeprefix(_IMAGE_ENCODER): array
        for name, array in tensors.items()
        if name.startswith(_IMAGE_ENCODER)
    }
    image, size = swin.image_options(encoder, files)
    dim = shape_of(tensors, "text_projection", 2)[1]
    config = clip_config(image, _text(tensors, options), dim, **swin.preprocessing(size))
    config["head"] |= dict(image_projection=True, temperature=_TEMPERATURE)
    return config


def _text(tensors, options):
    blocks = f"{_TEXT_ENCODER}{_BLOCKS}"
    vocab_size, width = shape_of(tensors, f"{_TEXT_ENCODER}token_embedding.weight", 2)
    return text_transformer.UNICL | dict(
        vocab_size=vocab_size,
        max_len=shape_of(tensors, f"{_TEXT_ENCODER}positional_embedding", 2)[0],
        width=width,
        depth=count(tensors, blocks.replace(".", r"\.") + r"(\d+)\."),
        heads=options.get("text_num_heads") or max(1, width // 64),
        mlp_dim=shape_of(tensors, f"{blocks}0.mlp.c_fc.weight", 2)[0],
    )


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Gives older files the names of newer ones."""
    del options
    return {_renamed(name): array for name, array in tensors.items()}


def _renamed(name):
    for older, newer in _OLDER.items():
        if name.startswith(older):
            return newer + name.removeprefix(older)
    return name


FORMAT = Format(
    config=_config,
    rules=_rules,
    # Also the classifier of the code that the image encoder comes from.
    ignored=(*swin.IGNORED, rf"{_IMAGE_ENCODER}head\..*"),
    options=("text_num_heads",),
    prepare=_prepare,
)
