"""Shared by transformers' ViT and DINOv2: rules and architecture."""

from collections.abc import Callable, Mapping

from big_ssl.weights import hf_layers
from big_ssl.weights.format import PLAIN_VIT, count, grid_side, json_file, shape_of
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
# Options that both model classes fix.
FIXED = dict(class_token=True, pre_norm=False, patch_bias=True, pooling="cls") | PLAIN_VIT


def without_prefix(prefix: str) -> Callable[[Mapping, Mapping], dict]:
    """A Format's `prepare` that removes the prefix of a classifier's backbone."""
    return lambda tensors, options: {name.removeprefix(prefix): array for name, array in tensors.items()}


def shape(tensors: Mapping, files: Mapping[str, dict], mlp_out: str, defaults: Mapping) -> dict:
    """Infers a ViT's options.

    Args:
      tensors: {name: array}.
      files: {file name: JSON}; must contain config.json.
      mlp_out: the name of the feed-forward's last linear layer.
      defaults: of the model's config class, see hf_layers.settings.

    Returns:
      The options of models.vit that the files determine.
    """
    width, channels, _, patch = shape_of(tensors, "embeddings.patch_embeddings.projection.weight", 4)
    table = "embeddings.position_embeddings"
    side = grid_side(shape_of(tensors, table, 3)[1] - 1, table)
    stated = hf_layers.stated(json_file(files, "config.json"))
    shape = dict(
        patch=patch,
        image_size=patch * side,
        width=width,
        depth=count(tensors, r"encoder\.layer\.(\d+)\."),
        mlp_dim=shape_of(tensors, f"encoder.layer.0.{mlp_out}.weight", 2)[1],
        mask_token=MASK_TOKEN in tensors,
        **hf_layers.settings(stated, defaults, width),
    )
    complete = {**defaults, **stated}
    hf_layers.compare_shape("", complete, shape)
    hf_layers.compare_image("", complete, patch, side, channels)
    return shape
