"""The ViT in the checkpoints of DINO, iBOT, DINOv2 and timm: rules and architecture."""

from collections.abc import Mapping

from big_ssl.weights.format import IMAGE, ModelConfig, count, grid_side, shape_of
from big_ssl.weights.rules import CONVOLUTION, SAME, Rule, fused, leading, linear, norm, within

_LAYER = [
    *norm("norm1", "attention_norm"),
    *fused("attn.qkv.", "query", "key", "value"),
    *linear("attn.proj", "out"),
    Rule("ls1.gamma", ("attention_scale",), SAME),
    *norm("norm2", "mlp_norm"),
    Rule("ls2.gamma", ("mlp_scale",), SAME),
]
_VIT = [
    Rule("cls_token", ("class_token",), leading(2)),
    Rule("pos_embed", ("position_embedding",), leading(1)),
    Rule("patch_embed.proj.weight", ("patch_embedding/kernel",), CONVOLUTION),
    Rule("patch_embed.proj.bias", ("patch_embedding/bias",), SAME),
    *within("blocks.{i}.", "layer{i}/", _LAYER),
    *norm("norm", "final_norm"),
]
# The linear layers of a SwiGLU; the first fuses gate and input.
SWIGLU = ("mlp.w12", "mlp.w3")
# Command line options of these formats.
OPTIONS = ("num_heads",)


def rules(
    config: ModelConfig,
    mask_token: str = "mask_token",
    registers: str = "register_tokens",
    swiglu: tuple[str, str] = SWIGLU,
) -> list[Rule]:
    """The rules for a backbone.

    Args:
      config: the model's ModelConfig.
      mask_token, registers, swiglu: the format's names of these arrays.
    """
    if config["encoders"]["image"]["feed_forward"] == "swiglu":
        first, last = swiglu
        feed_forward = [*fused(f"{first}.", "mlp_gate", "mlp_in"), *linear(last, "mlp_out")]
    else:
        feed_forward = [*linear("mlp.fc1", "mlp_in"), *linear("mlp.fc2", "mlp_out")]
    tokens = [
        Rule(mask_token, ("mask_token",), leading(1)),
        Rule(registers, ("registers",), leading(1)),
    ]
    return within("", IMAGE, [*_VIT, *within("blocks.{i}.", "layer{i}/", feed_forward), *tokens])


def shape(tensors: Mapping, options: Mapping, last: str = "mlp.fc2") -> dict:
    """Infers a ViT's size options from its arrays.

    Args:
      tensors: {name: array}.
      options: may contain num_heads; files do not store it, and the published models have width / 64.
      last: the name of the feed-forward's last linear layer.

    Returns:
      The options patch, width, depth, heads, mlp_dim and image_size.
    """
    width, _, _, patch = shape_of(tensors, "patch_embed.proj.weight", 4)
    side = grid_side(shape_of(tensors, "pos_embed", 3)[1] - 1, "pos_embed")
    return dict(
        patch=patch,
        width=width,
        depth=count(tensors, r"blocks\.(\d+)\."),
        heads=options.get("num_heads") or max(1, width // 64),
        mlp_dim=shape_of(tensors, f"blocks.0.{last}.weight", 2)[1],
        image_size=patch * side,
    )
