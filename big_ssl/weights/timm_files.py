"""timm's config.json: the preprocessing in its pretrained_cfg."""

import math
from collections.abc import Mapping

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGENET_PIXELS, ModelConfig


def preprocessing(files: Mapping[str, dict], image_size: int) -> ModelConfig:
    """The keys views, image_size and resize of a ModelConfig.

    files: {file name: JSON}. image_size: if the file states none, or is missing. Raises WeightsError for
    settings that we do not support.
    """
    settings = files.get("config.json", {}).get("pretrained_cfg", {})
    if settings.get("interpolation", "bicubic") != "bicubic":
        raise WeightsError(f"config.json: interpolation is {settings['interpolation']!r}; there is bicubic")
    if settings.get("crop_mode", "center") != "center":
        raise WeightsError(f"config.json: crop_mode is {settings['crop_mode']!r}; there is center")
    size = settings.get("input_size", (3, image_size))[1]
    side = math.floor(size / settings.get("crop_pct", 1.0))
    pixels = {key: tuple(settings.get(key, IMAGENET_PIXELS[key])) for key in ("mean", "std")}
    resize = "crop" if side == size else f"crop {side}"
    return dict(views=dict(image=IMAGENET_PIXELS | pixels), image_size=size, resize=resize)
