"""OpenAI's CLIP files: state dicts or TorchScript archives (.pt) with a ViT or a ResNet.

Names and shapes: openai/CLIP, clip/model.py. Head counts are not in the file: width / 64.
"""

import re
from collections.abc import Mapping

from big_ssl.models import text_transformer, vit
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import (
    HEAD,
    IMAGE,
    IMAGE_STATISTICS,
    TEXT,
    Format,
    ModelConfig,
    clip_config,
    count,
    grid_side,
    shape_of,
)
from big_ssl.weights.rules import (
    CONVOLUTION,
    POINTWISE,
    SAME,
    Rule,
    linear,
    norm,
    qkv,
    within,
)

LAYER = [
    *norm("ln_1", "attention_norm"),
    *qkv("attn", ""),
    *norm("ln_2", "mlp_norm"),
    *linear("mlp.c_fc", "mlp_in"),
    *linear("mlp.c_proj", "mlp_out"),
]
_LAYERS = within("transformer.resblocks.{i}.", "layer{i}/", LAYER)
_TEXT = [
    Rule("token_embedding.weight", ("token/embedding",), SAME),
    Rule("positional_embedding", ("position_embedding",), SAME),
    *_LAYERS,
    *norm("ln_final", "final_norm"),
]
_VIT = [
    Rule("conv1.weight", ("patch_embedding/kernel",), CONVOLUTION),
    Rule("class_embedding", ("class_token",), SAME),
    Rule("positional_embedding", ("position_embedding",), SAME),
    *norm("ln_pre", "pre_norm"),
    *_LAYERS,
    *norm("ln_post", "final_norm"),
]
# Not transposed: OpenAI computes x @ proj.
_HEAD = [
    Rule("text_projection", (f"{HEAD}text_projection/kernel",), SAME),
    Rule("logit_scale", (f"{HEAD}logit_scale",), SAME),
]
_IMAGE_PROJECTION = Rule("visual.proj", (f"{HEAD}image_projection/kernel",), SAME)
_ATTENTION_POOL = [
    Rule("positional_embedding", ("position_embedding",), SAME),
    *linear("q_proj", "query"),
    *linear("k_proj", "key"),
    *linear("v_proj", "value"),
    *linear("c_proj", "out"),
]


def _batch_norm(theirs, ours):
    return [
        *norm(f"visual.{theirs}", f"{IMAGE}{ours}"),
        Rule(f"visual.{theirs}.running_mean", (f"{IMAGE_STATISTICS}{ours}/mean",), SAME),
        Rule(f"visual.{theirs}.running_var", (f"{IMAGE_STATISTICS}{ours}/var",), SAME),
    ]


def _convolution(theirs, ours, transform):
    return Rule(f"visual.{theirs}.weight", (f"{IMAGE}{ours}",), transform)


def _resnet():
    rules = within("visual.attnpool.", f"{IMAGE}pooling/", _ATTENTION_POOL)
    for i in (1, 2, 3):
        rules += [
            _convolution(f"conv{i}", f"stem{i - 1}", CONVOLUTION),
            *_batch_norm(f"bn{i}", f"stem{i - 1}_bn"),
        ]
    for stage in range(4):
        theirs, ours = f"layer{stage + 1}.{{i}}.", f"stage{stage}_block{{i}}/"
        for i, transform in ((1, POINTWISE), (2, CONVOLUTION), (3, POINTWISE)):
            rules.append(_convolution(f"{theirs}conv{i}", f"{ours}conv{i}", transform))
            rules += _batch_norm(f"{theirs}bn{i}", f"{ours}conv{i}_bn")
        rules.append(_convolution(f"{theirs}downsample.0", f"{ours}shortcut", POINTWISE))
        rules += _batch_norm(f"{theirs}downsample.1", f"{ours}shortcut_bn")
    return rules


def rules(config: ModelConfig) -> list[Rule]:
    """The rules for a CLIP with this ModelConfig's image tower."""
    common = [*_HEAD, *within("", TEXT, _TEXT)]
    if config["encoders"]["image"]["kind"] == "resnet":
        return common + _resnet()
    return [*common, _IMAGE_PROJECTION, *within("visual.", IMAGE, _VIT)]


def infer_config(tensors: Mapping, options: Mapping) -> ModelConfig:
    """Infers the ModelConfig from the arrays' shapes.

    options: num_heads and text_num_heads, if they are not width / 64.
    """
    vocab_size, width = shape_of(tensors, "token_embedding.weight", 2)
    text = dict(
        vocab_size=vocab_size,
        max_len=shape_of(tensors, "positional_embedding", 2)[0],
        **_transformer(tensors, "", width, options.get("text_num_heads")),
        **text_transformer.CLIP,
    )
    dim = shape_of(tensors, "text_projection", 2)[1]
    infer_image = _resnet_config if "visual.layer1.0.conv1.weight" in tensors else _vit_config
    image = infer_image(tensors, options)
    return clip_config(image, text, dim, image["image_size"])


def _vit_config(tensors, options):
    width, _, _, patch = shape_of(tensors, "visual.conv1.weight", 4)
    positions = shape_of(tensors, "visual.positional_embedding", 2)[0] - 1
    image_size = patch * grid_side(positions, "visual.positional_embedding")
    shape = _transformer(tensors, "visual.", width, options.get("num_heads"))
    size = dict(patch=patch, image_size=image_size, position_resize="bicubic_antialias")
    return vit.CLIP | dict(kind="vit", **size, **shape)


def _resnet_config(tensors, options):
    if "num_heads" in options:
        raise WeightsError("num_heads: a ResNet's attention pool always has width / 2")
    positions = shape_of(tensors, "visual.attnpool.positional_embedding", 2)[0] - 1
    return dict(
        kind="resnet",
        width=shape_of(tensors, "visual.layer1.0.conv1.weight", 4)[0],
        blocks=[count(tensors, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)],
        image_size=32 * grid_side(positions, "visual.attnpool.positional_embedding"),
        pooled_dim=shape_of(tensors, "visual.attnpool.c_proj.weight", 2)[0],
    )


def _transformer(tensors, prefix, width, heads):
    return dict(
        width=width,
        depth=count(tensors, re.escape(f"{prefix}transformer.resblocks.") + r"(\d+)\."),
        heads=heads or max(1, width // 64),
        mlp_dim=shape_of(tensors, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    )


IGNORED = (
    "input_resolution",
    "context_length",
    "vocab_size",
    r".*\.num_batches_tracked",
    r"(.*\.)?attn_mask",
)
HEADS = ("num_heads", "text_num_heads")

FORMAT = Format(
    config=lambda tensors, files, options: infer_config(tensors, options),
    rules=rules,
    ignored=IGNORED,
    options=HEADS,
)
