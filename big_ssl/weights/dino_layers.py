"""What the checkpoints of DINO's children have in common: the names of their ViT, and its shape."""

from collections.abc import Mapping

from big_ssl.weights.format import IMAGE, Config, count, grid_side, shape_of
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
# The arrays of a SwiGLU: its first two products are one.
SWIGLU = ("mlp.w12", "mlp.w3")
# What the command line may say of them.
OPTIONS = ("num_heads",)


def rules(
    config: Config,
    mask_token: str = "mask_token",
    registers: str = "register_tokens",
    swiglu: tuple[str, str] = SWIGLU,
) -> list[Rule]:
    """All names of a backbone; those that are spelt in several ways are parameters."""
    if config["encoders"]["image"]["feed_forward"] == "swiglu":
        first, last = swiglu
        inside = [*fused(f"{first}.", "mlp_gate", "mlp_in"), *linear(last, "mlp_out")]
    else:
        inside = [*linear("mlp.fc1", "mlp_in"), *linear("mlp.fc2", "mlp_out")]
    tokens = [
        Rule(mask_token, ("mask_token",), leading(1)),
        Rule(registers, ("registers",), leading(1)),
    ]
    return within("", IMAGE, [*_VIT, *within("blocks.{i}.", "layer{i}/", inside), *tokens])


def shape(tensors: Mapping, options: Mapping, last: str = "mlp.fc2") -> dict:
    """A ViT's size, by its arrays; last: the name of a feed-forward's last product.

    Heads are not in a file: width / 64 as published, or the option num_heads.
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
