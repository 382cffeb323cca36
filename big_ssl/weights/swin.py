"""Swin's and Swin V2's own files (.pth), and timm's: model.safetensors beside config.json.

Layout: microsoft/Swin-Transformer, models/swin_transformer.py and swin_transformer_v2.py; timm's modules of
these names, in which a merging belongs to the stage after it, not before it. The windows of Swin V2 are in
the buffers of its own files, and in the name of timm's architecture.
"""

import re
from collections.abc import Mapping

import numpy as np

from big_ssl.weights import swin_layers, timm_config
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGENET_PIXELS, Format, ModelConfig, grid_side, image_config, shape_of
from big_ssl.weights.rules import LINEAR, SAME, Rule, Transform, fused, linear, norm
from big_ssl.weights.swin_layers import LOG_SCALE, Names, one_or_all

# Of timm's models.
ARCHITECTURE = r"swin(v2)?_(tiny|small|base|large)_.*"

NAMES = Names(
    projection="patch_embed.proj",
    patch_norm="patch_embed.norm",
    mask_token="mask_token",
    stages="layers.",
    final_norm="norm",
    table="attn.relative_position_bias_table",
    mlp_in="mlp.fc1",
    log_scale="attn.logit_scale",
)
_COMMON = [
    *norm("norm1", "attention_norm"),
    *linear("attn.proj", "out"),
    *norm("norm2", "mlp_norm"),
    *linear("mlp.fc1", "mlp_in"),
    *linear("mlp.fc2", "mlp_out"),
]
# [3 * out, in] as three [in, out], without a bias.
_FUSED = Transform(
    lambda x: [part.T for part in np.split(x, 3)], lambda xs: np.concatenate([x.T for x in xs])
)
_BLOCKS = {
    1: [
        *_COMMON,
        *fused("attn.qkv.", "query", "key", "value"),
        Rule(NAMES.table, ("position_bias/table",), SAME),
    ],
    2: [
        *_COMMON,
        Rule("attn.qkv.weight", ("query/kernel", "key/kernel", "value/kernel"), _FUSED),
        Rule("attn.q_bias", ("query/bias",), SAME),
        Rule("attn.v_bias", ("value/bias",), SAME),
        Rule(NAMES.log_scale, ("log_scale",), LOG_SCALE),
        *linear("attn.cpb_mlp.0", "position_bias/hidden"),
        Rule("attn.cpb_mlp.2.weight", ("position_bias/out/kernel",), LINEAR),
    ],
}
# Buffers.
IGNORED = (r".*\.relative_position_index", r".*\.relative_coords_table", r".*\.attn_mask")


def rules(config: ModelConfig) -> list[Rule]:
    """The rules for a Swin or Swin V2."""
    image = config["encoders"]["image"]
    return swin_layers.rules(image, NAMES, _BLOCKS[image["version"]])


def image_options(tensors: Mapping, files: Mapping[str, dict]) -> tuple[dict, int]:
    """(the encoder's options, the size of the images that it was trained with).

    tensors: {name: array}; files: {file name: JSON}. Raises WeightsError for arrays that do not fit, and for
    a Swin V2 whose windows are not known.
    """
    image = swin_layers.shape(tensors, NAMES)
    if image["version"] == 2:
        image |= _windows(tensors, files, len(image["depths"]))
    window = image["window"] if isinstance(image["window"], int) else max(image["window"])
    # Published models have, at their size, a last map that is one window, or masks that tell.
    return image, _masked_size(tensors, window) or 4 * 2 ** (len(image["depths"]) - 1) * window


def preprocessing(image_size: int) -> ModelConfig:
    """The published preprocessing: a crop of 7 / 8 up to 256 pixels, the whole image above."""
    resize = "stretch" if image_size > 256 else f"crop {256 * image_size // 224}"
    return dict(views=dict(image=IMAGENET_PIXELS), image_size=image_size, resize=resize)


def _masked_size(tensors, window):
    """The image size by the mask of the first stage's shifted windows, 0 without it."""
    name = f"{NAMES.stages}0.blocks.1.attn_mask"
    if name not in tensors:
        return 0
    return 4 * window * grid_side(shape_of(tensors, name, 3)[0], name)


def _windows(tensors, files, stages):
    """Swin V2's options window and pretrained_window."""
    tables = [f"{NAMES.stages}{i}.blocks.0.attn.relative_coords_table" for i in range(stages)]
    if tables[0] in tensors:
        sides = [(shape_of(tensors, name, 4)[1] + 1) // 2 for name in tables]
        pairs = zip(sides, tables, strict=True)
        pretrained = [_pretrained(side, tensors[name].max()) for side, name in pairs]
        return dict(window=one_or_all(sides), pretrained_window=one_or_all(pretrained))
    name = str(files.get("config.json", {}).get("architecture"))
    match = re.search(r"_window(\d+)(?:to(\d+))?_(\d+)(?:to(\d+))?", name)
    if match is None:
        raise WeightsError(
            f"{tables[0]} is missing, and config.json has no architecture such as swinv2_tiny_window8_256: "
            "Swin V2's windows are not known"
        )
    first, last, first_size, last_size = (int(number) if number else None for number in match.groups())
    before = swin_layers.clamped(first, first_size, stages)
    if last is None:
        return dict(window=before, pretrained_window=0)
    after = swin_layers.clamped(last, last_size or first_size, stages)
    return dict(window=after, pretrained_window=before)


def _pretrained(side, largest):
    """The window of the pre-training from the largest coordinate, log8(1 + 8 (side - 1) / (window - 1))."""
    return side if side == 1 else round(1 + 8 * (side - 1) / (8 ** float(largest) - 1))


def _config(tensors, files, options) -> ModelConfig:
    del options
    image, size = image_options(tensors, files)
    if "pretrained_cfg" in files.get("config.json", {}):
        return image_config(image, **timm_config.preprocessing(files, size))
    return image_config(image, **preprocessing(size))


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Removes the prefix of SimMIM's files, and gives timm's mergings the stage before them."""
    del options
    prepared = {name.removeprefix("encoder."): array for name, array in tensors.items()}
    if any(name.startswith("layers.0.downsample.") for name in prepared):
        return prepared
    return {_moved(name): array for name, array in prepared.items()}


def _moved(name):
    match = re.fullmatch(r"layers\.(\d+)\.(downsample\..*)", name)
    return f"layers.{int(match[1]) - 1}.{match[2]}" if match else name


FORMAT = Format(
    config=_config,
    rules=rules,
    # Heads on top, which a ModelConfig does not describe.
    ignored=(*IGNORED, r"head\..*", r"decoder\..*"),
    weights=timm_config.WEIGHTS,
    files=timm_config.FILES,
    prepare=_prepare,
)
