"""The ViT in the checkpoints of DINO, iBOT, DINOv2, DINOv3, TIPSv2 and timm: rules and architecture."""

from collections.abc import Mapping, Sequence

import numpy as np

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGE, ModelConfig, count, grid_side, shape_of
from big_ssl.weights.rules import CONVOLUTION, SAME, Rule, Transform, fused, leading, linear, norm, within

_LAYER = [
    *norm("norm1", "attention_norm"),
    *linear("attn.proj", "out"),
    *norm("norm2", "mlp_norm"),
]
_VIT = [
    Rule("cls_token", ("class_token",), leading(2)),
    Rule("pos_embed", ("position_embedding",), leading(1)),
    Rule("patch_embed.proj.weight", ("patch_embedding/kernel",), CONVOLUTION),
    Rule("patch_embed.proj.bias", ("patch_embedding/bias",), SAME),
    *within("blocks.{i}.", "layer{i}/", _LAYER),
    *norm("norm", "final_norm"),
]
QKV_WEIGHT, _QKV_BIAS = fused("attn.qkv.", "query", "key", "value")
# [3 D] whose second third, the keys', has no effect, as the biases of query and value.
_WITHOUT_KEY = Transform(
    lambda x: np.split(x, 3)[::2], lambda xs: np.concatenate([xs[0], np.zeros_like(xs[0]), xs[1]])
)
# The bias of the fused projections, by the models' option qkv_bias.
_QKV_BIASES = {
    "qkv": [_QKV_BIAS],
    "qv": [Rule("attn.qkv.bias", ("query/bias", "value/bias"), _WITHOUT_KEY)],
    "": [],
}
# The linear layers of a SwiGLU; the first fuses gate and input, unless there are three.
SWIGLU = ("mlp.w12", "mlp.w3")
# Command line options of these formats; `network` of those that may hold a training run.
OPTIONS = ("num_heads",)
TRAINING_OPTIONS = (*OPTIONS, "network")
_NETWORKS = ("teacher", "student")
# Names of a training run's other network.
OTHER_NETWORK = rf"({'|'.join(_NETWORKS)})\..*"


def rules(
    config: ModelConfig,
    mask_token: str = "mask_token",
    registers: str = "register_tokens",
    swiglu: tuple[str, ...] = SWIGLU,
    layer_scales: tuple[str, str] = ("ls1.gamma", "ls2.gamma"),
    qkv: Sequence[Rule] | None = None,
) -> list[Rule]:
    """The rules for a backbone.

    Args:
      config: the model's ModelConfig.
      mask_token, registers, swiglu, layer_scales: the format's names of these arrays.
      qkv: a layer's rules for query, key and value; None for those of the model's option qkv_bias.
    """
    image = config["encoders"]["image"]
    if image["feed_forward"] == "swiglu":
        *first, last = swiglu
        gate_and_input = (
            fused(f"{first[0]}.", "mlp_gate", "mlp_in")
            if len(first) == 1
            else [*linear(first[0], "mlp_gate"), *linear(first[1], "mlp_in")]
        )
        feed_forward = [*gate_and_input, *linear(last, "mlp_out")]
    else:
        feed_forward = [*linear("mlp.fc1", "mlp_in"), *linear("mlp.fc2", "mlp_out")]
    tokens = [
        Rule(mask_token, ("mask_token",), leading(1)),
        Rule(registers, ("registers",), leading(1)),
    ]
    scales = zip(layer_scales, ("attention_scale", "mlp_scale"), strict=True)
    layer = [*(Rule(theirs, (ours,), SAME) for theirs, ours in scales), *feed_forward]
    layer += qkv or [QKV_WEIGHT, *_QKV_BIASES[image.get("qkv_bias", "qkv")]]
    return within("", IMAGE, [*_VIT, *within("blocks.{i}.", "layer{i}/", layer), *tokens])


def select_network(tensors: Mapping, options: Mapping) -> dict:
    """Removes the prefix of one network of a training run from its arrays' names.

    Args:
      tensors: {name: array}.
      options: may contain network; by default it is the teacher, which the papers evaluate.

    Returns:
      {name: array}, the other network's with its prefix.

    Raises:
      WeightsError: if there is no such network.
    """
    network = options.get("network", _NETWORKS[0])
    if network not in _NETWORKS:
        raise WeightsError(f"network is {network!r}; there are {', '.join(_NETWORKS)}")
    if "network" in options and not any(name.startswith(f"{network}.") for name in tensors):
        raise WeightsError(f"network is {network!r}; the file holds a backbone alone")
    return {name.removeprefix(f"{network}."): array for name, array in tensors.items()}


def out_features(tensors: Mapping, name: str) -> int:
    """Of a linear layer. Raises WeightsError if its weight is missing or of another rank."""
    return shape_of(tensors, f"{name}.weight", 2)[0]


def shape(tensors: Mapping, options: Mapping, last: str = "mlp.fc2", class_tokens: int = 1) -> dict:
    """Infers a ViT's size options from its arrays.

    Args:
      tensors: {name: array}.
      options: may contain num_heads; files do not store it, and the published models have width / 64.
      last: the name of the feed-forward's last linear layer.
      class_tokens: how many rows of the position table are not patches'.

    Returns:
      The options patch, width, depth, heads, mlp_dim and image_size.
    """
    width, _, _, patch = shape_of(tensors, "patch_embed.proj.weight", 4)
    side = grid_side(shape_of(tensors, "pos_embed", 3)[1] - class_tokens, "pos_embed")
    return dict(
        patch=patch,
        width=width,
        depth=count(tensors, r"blocks\.(\d+)\."),
        heads=options.get("num_heads") or max(1, width // 64),
        mlp_dim=shape_of(tensors, f"blocks.0.{last}.weight", 2)[1],
        image_size=patch * side,
    )
