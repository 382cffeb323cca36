"""timm's config.json: the architecture's name, the arguments of its model, its pooling and preprocessing.

timm writes the arguments in `model_args`; they may differ from those of the architecture's published models.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGENET_PIXELS, compare, one_side

FILES = ("config.json",)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# (depth, heads) of the sizes in architectures' names, where a format does not state others.
SIZES = dict(
    tiny=(12, 3),
    small=(12, 6),
    base=(12, 12),
    large=(24, 16),
    huge=(32, 16),
    giant=(40, 16),
    gigantic=(48, 16),
)
# Arguments that the arrays or config.json show as well, and those of training alone.
_NOT_READ = re.compile(
    "patch_size|in_chans|num_classes|mlp_ratio|qkv_bias|class_token|num_reg_tokens|init_values|swiglu_mlp"
    r"|swiglu_align_to|dynamic_img_size|global_pool|(\w+_)?drop(_path)?_rate"
)
_COMPARED = ("depth", "num_heads", "embed_dim", "img_size")
_MODES = dict(center="crop", squash="stretch")
_FILTERS = dict(bicubic="", bilinear=" bilinear")


def arguments(
    files: Mapping[str, dict], architecture: str, sizes: Mapping[str, tuple], heeded: Iterable[str] = ()
) -> dict[str, Any]:
    """The arguments of a model.

    Args:
      files: {file name: JSON}.
      architecture: a regex of the format's architectures, with a group `size`.
      sizes: {size: (depth, heads)}.
      heeded: the arguments that the format reads besides depth, num_heads, embed_dim and img_size.

    Returns:
      depth and num_heads by the architecture's name, replaced and completed by model_args; {} without a
      config.json.

    Raises:
      WeightsError: for another architecture, and for an argument that the format does not read.
    """
    config = files.get("config.json", {})
    stated = {k: value for k, value in (config.get("model_args") or {}).items() if value is not None}
    if name := config.get("architecture"):
        match = re.fullmatch(architecture, name)
        if not match or match["size"] not in sizes:
            raise WeightsError(f"config.json: architecture is {name!r}, which this format does not read")
        stated = dict(zip(("depth", "num_heads"), sizes[match["size"]], strict=True)) | stated
    for key in stated:
        if key not in (*_COMPARED, *heeded) and not _NOT_READ.fullmatch(key):
            raise WeightsError(
                f"config.json: model_args.{key} is {stated[key]!r}, which this format does not read; "
                f"--model.accept={key} ignores it"
            )
    return stated


def check_shape(stated: Mapping, shape: Mapping) -> None:
    """Raises WeightsError if `arguments` differ from a ViT's options: layers are missing, for example."""
    actual = dict(depth=shape["depth"], embed_dim=shape["width"])
    if "image_size" in shape:
        actual["img_size"] = shape["image_size"]
        stated = dict(stated) | {key: one_side(stated[key]) for key in ("img_size",) if key in stated}
    compare("config.json: ", stated, actual)


def heads(stated: Mapping, options: Mapping, width: int) -> int:
    """The number of heads: by the command line, by `arguments`, or else width / 64."""
    return options.get("num_heads") or stated.get("num_heads") or max(1, width // 64)


def pooling(files: Mapping[str, dict], kinds: Mapping[str, str], default: str) -> str:
    """The option `pooling` of config.json's global_pool, or `default`. kinds: {global_pool: pooling}."""
    stated = files.get("config.json", {}).get("global_pool")
    if stated is not None and stated not in kinds:
        raise WeightsError(f"config.json: global_pool is {stated!r}; there is {', '.join(kinds)}")
    return default if stated is None else kinds[stated]


def preprocessing(files: Mapping[str, dict], size: int, pixels: Mapping = IMAGENET_PIXELS) -> dict[str, Any]:
    """image_size, resize and views of a ModelConfig, by pretrained_cfg.

    Args:
      files: {file name: JSON}.
      size: the images', and pixels: their view, where it does not state them.

    Raises:
      WeightsError: for a filter, a way to crop or a size that is not read.
    """
    settings = files.get("config.json", {}).get("pretrained_cfg") or {}
    mode = _lookup(settings, "crop_mode", _MODES, "center")
    filter_ = _lookup(settings, "interpolation", _FILTERS, "bicubic")
    size = one_side(list(settings.get("input_size", (3, size, size)))[1:])
    if not isinstance(size, int):
        raise WeightsError(f"config.json: input_size is {settings['input_size']}; it must be a square's")
    side = math.floor(size / settings.get("crop_pct", 1.0))
    view = dict(pixels) | {key: tuple(settings.get(key, pixels[key])) for key in ("mean", "std")}
    resize = (mode if side == size else f"{mode} {side}") + filter_
    return dict(image_size=size, resize=resize, views=dict(image=view))


def _lookup(settings, key, table, default):
    value = settings.get(key, default)
    if value not in table:
        raise WeightsError(f"config.json: {key} is {value!r}; there is {', '.join(table)}")
    return table[value]
