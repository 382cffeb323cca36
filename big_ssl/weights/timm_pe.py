"""timm's vit_pe_core_*, Perception Encoder's image encoders: model.safetensors beside config.json.

Layout: timm/models/eva.py. The projection into the embeddings that images share with texts is `head`.
"""

import re
from typing import Any

import numpy as np

from big_ssl.models import vit
from big_ssl.weights import dino_layers, timm_config
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import EMBEDDING, HALF_PIXELS, IMAGE, Format, ModelConfig, image_config, one_side
from big_ssl.weights.rules import Rule, Transform, fused, leading, linear, norm, within

ARCHITECTURE = r"vit_pe_core_(?P<size>[a-z]+)_patch(?P<patch>\d+)_(?P<side>\d+)"
SIZES = timm_config.SIZES | dict(gigantic=(50, 16))
_HEEDED = ("attn_pool_num_heads", "attn_pool_mlp_ratio", "ref_feat_shape", "rope_temperature")
_PE = vit.CLIP | dict(activation="gelu", feed_forward="mlp", pooling="map")
_POOLING = [
    Rule("latent", ("probe",), leading(2)),
    *linear("q", "query"),
    *fused("kv.", "key", "value"),
    *linear("proj", "out"),
    *norm("norm", "mlp_norm"),
    *linear("mlp.fc1", "mlp_in"),
    *linear("mlp.fc2", "mlp_out"),
]


def _config(tensors, files, options) -> ModelConfig:
    stated = timm_config.arguments(files, ARCHITECTURE, SIZES, _HEEDED)
    timm_config.pooling(files, dict(map="map"), "map")
    class_token = "cls_token" in tensors
    shape = dino_layers.shape(tensors, options, class_tokens=int(class_token))
    timm_config.check_shape(stated, shape)
    shape["heads"] = timm_config.heads(stated, options, shape["width"])
    image = _PE | dict(
        **shape,
        class_token=class_token,
        pooling_heads=stated.get("attn_pool_num_heads") or 8,
        pooling_mlp_dim=dino_layers.out_features(tensors, "attn_pool.mlp.fc1"),
        rope_base=stated.get("rope_temperature", 10_000.0),
        rope_side=_reference_side(files, stated, shape),
    )
    _check_heads(image)
    embedding: dict[str, Any] = {}
    if "head.weight" in tensors:
        dim = dino_layers.out_features(tensors, "head")
        embedding = dict(embedding_head=dict(embed_dim=dim, bias=True))
    return image_config(
        image, **timm_config.preprocessing(files, shape["image_size"], HALF_PIXELS), **embedding
    )


def _reference_side(files, stated, shape):
    """The grid of the architecture's own size, which later changes of the table do not touch."""
    if (side := one_side(stated.get("ref_feat_shape"))) is not None:
        return side
    if match := re.fullmatch(ARCHITECTURE, files.get("config.json", {}).get("architecture") or ""):
        return int(match["side"]) // int(match["patch"])
    return shape["image_size"] // shape["patch"]


def _check_heads(image):
    for key, unit in dict(heads=4, pooling_heads=1).items():
        if image["width"] % (unit * image[key]):
            raise WeightsError(f"{key} is {image[key]}; it must divide the width {image['width']} by {unit}")


def _rules(config: ModelConfig) -> list[Rule]:
    image = config["encoders"]["image"]
    order = _rotary_order(image["heads"], image["width"] // image["heads"])
    qkv = [_reordered(rule, order) for rule in fused("attn.qkv.", "query", "key", "value")]
    return [
        *dino_layers.rules(config, qkv=qkv),
        *within("", IMAGE, norm("norm_pre", "pre_norm")),
        *within("attn_pool.", f"{IMAGE}pooling/", _POOLING),
        *linear("head", f"{EMBEDDING}projection"),
    ]


def _rotary_order(heads: int, head_dim: int) -> np.ndarray:
    """int[D]: the channel in their queries and keys of each of ours.

    They rotate neighbouring channels, pairs of x before those of y; we rotate i with i + head_dim / 2, pairs
    of y before those of x.
    """
    pairs = np.arange(head_dim).reshape(-1, 2)
    pairs = np.roll(pairs, -len(pairs) // 2, axis=0)
    return (head_dim * np.arange(heads)[:, None] + pairs.T.reshape(-1)).reshape(-1)


def _reordered(rule: Rule, order: np.ndarray) -> Rule:
    """A rule of fused query, key and value whose queries and keys get this order."""

    def change(arrays, order):
        query, key, value = arrays
        return [query[..., order], key[..., order], value]

    inverse = np.argsort(order)
    return rule._replace(
        transform=Transform(
            lambda x: change(rule.transform.read(x), order),
            lambda xs: rule.transform.write(change(xs, inverse)),
        )
    )


FORMAT = Format(
    config=_config,
    rules=_rules,
    weights=timm_config.WEIGHTS,
    files=timm_config.FILES,
    options=dino_layers.OPTIONS,
)
