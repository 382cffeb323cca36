"""big_vision's npz files of SigLIP and SigLIP 2 (fixed resolution), with or without scanned layers.

They have no config: the shapes determine the architecture, except the image size if patches do not fill it
(So400m/14 at 384 pixels has 27 x 14 = 378); give that by the option image_size.
"""

import re
from collections.abc import Mapping

import numpy as np

from big_ssl.models import text_transformer, vit
from big_ssl.weights.format import (
    HEAD,
    IMAGE,
    TEXT,
    Format,
    ModelConfig,
    count,
    grid_side,
    shape_of,
    siglip_config,
)
from big_ssl.weights.rules import SAME, Rule, Transform, leading, within


def _dense(theirs, ours):
    return [Rule(f"{theirs}/{leaf}", (f"{ours}/{leaf}",), SAME) for leaf in ("kernel", "bias")]


def _norm(theirs, ours):
    return [Rule(f"{theirs}/{leaf}", (f"{ours}/{leaf}",), SAME) for leaf in ("scale", "bias")]


def _attention(heads):
    """query, key, value [in, heads, size] and out [heads, size, out]; ours flatten heads and size."""
    first = Transform(
        lambda x: (x.reshape(heads, -1, x.shape[-1]).reshape(-1, x.shape[-1]),),
        lambda xs: xs[0].reshape(heads, -1, xs[0].shape[-1]),
    )
    last = Transform(
        lambda x: (x.reshape(*x.shape[:-2], -1),), lambda xs: xs[0].reshape(*xs[0].shape[:-1], heads, -1)
    )
    rules = [
        Rule(f"{name}/{leaf}", (f"{name}/{leaf}",), last)
        for name in ("query", "key", "value")
        for leaf in ("kernel", "bias")
    ]
    rules += [Rule("out/kernel", ("out/kernel",), first), Rule("out/bias", ("out/bias",), SAME)]
    return within("MultiHeadDotProductAttention_0/", "", rules)


_MLP = [*_dense("MlpBlock_0/Dense_0", "mlp_in"), *_dense("MlpBlock_0/Dense_1", "mlp_out")]


def _transformer(theirs, ours, heads):
    norms = [*_norm("LayerNorm_0", "attention_norm"), *_norm("LayerNorm_1", "mlp_norm")]
    layers = within("encoderblock_{i}/", "layer{i}/", [*norms, *_attention(heads), *_MLP])
    return within(theirs, ours, [*layers, *_norm("encoder_norm", "final_norm")])


def _rules(config: ModelConfig) -> list[Rule]:
    image, text = (config["encoders"][name]["heads"] for name in ("image", "text"))
    pooling = [
        Rule("probe", ("probe",), leading(2)),
        *_attention(image),
        *_norm("LayerNorm_0", "mlp_norm"),
        *_MLP,
    ]
    return [
        *_dense("img/embedding", f"{IMAGE}patch_embedding"),
        Rule("img/pos_embedding", (f"{IMAGE}position_embedding",), leading(1)),
        *_transformer("img/Transformer/", IMAGE, image),
        *within("img/MAPHead_0/", f"{IMAGE}pooling/", pooling),
        Rule("txt/Embed_0/embedding", (f"{TEXT}token/embedding",), SAME),
        Rule("txt/pos_embedding", (f"{TEXT}position_embedding",), leading(1)),
        *_transformer("txt/Encoder_0/", TEXT, text),
        *_dense("txt/head", f"{HEAD}text_projection"),
        Rule("t", (f"{HEAD}logit_scale",), leading(1)),  # a logarithm, as ours
        Rule("b", (f"{HEAD}logit_bias",), leading(1)),
    ]


def _config(tensors, files, options) -> ModelConfig:
    del files
    vocab_size, width = shape_of(tensors, "txt/Embed_0/embedding", 2)
    text = dict(
        vocab_size=vocab_size,
        max_len=shape_of(tensors, "txt/pos_embedding", 3)[1],
        **_shape(tensors, "txt/Encoder_0", width),
        **text_transformer.SIGLIP,
    )
    patch, _, _, width = shape_of(tensors, "img/embedding/kernel", 4)
    image_size = patch * grid_side(shape_of(tensors, "img/pos_embedding", 3)[1], "img/pos_embedding")
    shape = _shape(tensors, "img/Transformer", width)
    size = dict(patch=patch, image_size=image_size, position_resize="bilinear_align_corners")
    image = vit.SIGLIP | dict(kind="vit", **size, **shape)
    return siglip_config(image, text, options.get("image_size", image_size))


def _shape(tensors, encoder, width):
    first = f"{encoder}/encoderblock_0/"
    return dict(
        width=width,
        depth=count(tensors, rf"{encoder}/encoderblock_(\d+)/"),
        heads=shape_of(tensors, f"{first}MultiHeadDotProductAttention_0/query/kernel", 3)[1],
        mlp_dim=shape_of(tensors, f"{first}MlpBlock_0/Dense_0/kernel", 2)[1],
    )


def _prepare(tensors: Mapping[str, np.ndarray], options: Mapping) -> dict[str, np.ndarray]:
    """Removes some files' prefix "params/" and unstacks scanned layers."""
    del options
    prepared = {}
    for name, array in tensors.items():
        name = name.removeprefix("params/")
        if "/encoderblock/" in name:
            prepared |= {
                re.sub("/encoderblock/", f"/encoderblock_{i}/", name): x for i, x in enumerate(array)
            }
        else:
            prepared[name] = array
    return prepared


FORMAT = Format(config=_config, rules=_rules, options=("image_size",), prepare=_prepare)
