"""What transformers' ViT and DINOv2 have in common: names, and the shape that files tell."""

from collections.abc import Callable, Mapping

from big_ssl.weights import hf_layers
from big_ssl.weights.format import count, grid_side, json_file, shape_of
from big_ssl.weights.rules import CONVOLUTION, SAME, Rule, leading, linear, norm

EMBEDDINGS = [
    Rule("embeddings.cls_token", ("class_token",), leading(2)),
    Rule("embeddings.position_embeddings", ("position_embedding",), leading(1)),
    Rule("embeddings.patch_embeddings.projection.weight", ("patch_embedding/kernel",), CONVOLUTION),
    Rule("embeddings.patch_embeddings.projection.bias", ("patch_embedding/bias",), SAME),
    *norm("layernorm", "final_norm"),
]
ATTENTION = [
    *linear("attention.attention.query", "query"),
    *linear("attention.attention.key", "key"),
    *linear("attention.attention.value", "value"),
    *linear("attention.output.dense", "out"),
]
MASK_TOKEN = "embeddings.mask_token"
# What both classes are, whatever their config.
ALWAYS = dict(class_token=True, pre_norm=False, patch_bias=True, pooling="cls")


def without(prefix: str) -> Callable[[Mapping, Mapping], dict]:
    """A Format's prepare for files of a classifier, whose backbone's names have a prefix."""
    return lambda tensors, options: {name.removeprefix(prefix): array for name, array in tensors.items()}


def shape(tensors: Mapping, files: Mapping[str, dict], mlp_out: str, defaults: Mapping) -> dict:
    """A ViT's size, and what config.json says; mlp_out: the name of its feed-forward's last product."""
    width, _, _, patch = shape_of(tensors, "embeddings.patch_embeddings.projection.weight", 4)
    table = "embeddings.position_embeddings"
    side = grid_side(shape_of(tensors, table, 3)[1] - 1, table)
    return dict(
        patch=patch,
        image_size=patch * side,
        width=width,
        depth=count(tensors, r"encoder\.layer\.(\d+)\."),
        mlp_dim=shape_of(tensors, f"encoder.layer.0.{mlp_out}.weight", 2)[1],
        mask_token=MASK_TOKEN in tensors,
        **hf_layers.settings(json_file(files, "config.json"), defaults),
    )
