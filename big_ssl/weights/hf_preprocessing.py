"""transformers' settings of image processors, as a ModelConfig's keys views, image_size and resize.

They are in preprocessor_config.json, or under "image_processor" in processor_config.json, which transformers
5 writes and then prefers. Every key is heeded or refused by name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from big_ssl.data.preprocessing import FILTERS, parse_resize
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import CLIP_PIXELS, HALF_PIXELS, IMAGENET_PIXELS, ModelConfig, per_channel

FILES = ("preprocessor_config.json", "processor_config.json")

# Pillow's numbers for its filters.
_RESAMPLE = {int(number): name for name, number in FILTERS.items()}

_COMMON = dict(do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True)
_CLIP = _COMMON | dict(
    size=dict(shortest_edge=224),
    resample=3,
    do_center_crop=True,
    crop_size=224,
    image_mean=CLIP_PIXELS["mean"],
    image_std=CLIP_PIXELS["std"],
)
_SQUARE = _COMMON | dict(
    size=dict(height=224, width=224),
    do_center_crop=False,
    image_mean=HALF_PIXELS["mean"],
    image_std=HALF_PIXELS["std"],
)
# The settings that a file may leave out, by the processor's class. The versions of transformers differ in
# EfficientNet's filter, so that a file must state it.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "SiglipImageProcessor": _SQUARE | dict(resample=3),
    "ViTImageProcessor": _SQUARE | dict(resample=2),
    "DINOv3ViTImageProcessor": _SQUARE
    | dict(resample=2, image_mean=IMAGENET_PIXELS["mean"], image_std=IMAGENET_PIXELS["std"]),
    "Tipsv2ImageProcessor": _SQUARE | dict(size=dict(height=448, width=448), resample=2, do_normalize=False),
    "EfficientNetImageProcessor": _SQUARE
    | dict(size=dict(height=346, width=346), crop_size=289, rescale_offset=False, include_top=True),
}
# Classes for which a size that is a number is the shorter side's, unless default_to_square says otherwise.
_SHORTER_SIDE = ("CLIPImageProcessor", "BitImageProcessor", "SiglipImageProcessor")
_CLASS_KEYS = ("image_processor_type", "feature_extractor_type")
# Keys that do not change the pixels of an RGB image.
_WITHOUT_EFFECT = {
    *_CLASS_KEYS,
    "processor_class",
    "_processor_class",
    "_valid_processor_keys",
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
}


def read(files: Mapping[str, dict], default: ModelConfig, processor: str) -> ModelConfig:
    """Reads the preprocessing.

    Args:
      files: {file name: JSON}.
      default: the result if there is no file.
      processor: the class for files that do not name theirs, a key of _DEFAULTS.

    Returns:
      The keys views, image_size and resize.

    Raises:
      WeightsError: naming the file, and a key that is unknown or has a value that we do not support.
    """
    name, settings = _stored(files)
    if settings is None:
        return default
    try:
        return _preprocessing(settings, processor)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error


def _stored(files):
    """(the file's name, its settings); (None, None) without any."""
    plain, nested = FILES
    if "image_processor" in files.get(nested, {}):
        return nested, files[nested]["image_processor"]
    return (plain, files[plain]) if plain in files else (None, None)


def _preprocessing(stored, processor):
    options = {key: value for key, value in stored.items() if value is not None}
    name = next((str(options[key]) for key in _CLASS_KEYS if key in options), processor)
    processor = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if processor not in _DEFAULTS:
        raise WeightsError(f"{name} is no image processor that we know: {', '.join(_DEFAULTS)}")
    known = _DEFAULTS[processor].keys() | {"resample", "crop_size", "default_to_square"} | _WITHOUT_EFFECT
    settings = _DEFAULTS[processor] | options
    for key, value in options.items():
        if key not in known and value is not False:  # what is switched off has no effect
            raise WeightsError(_unknown(key, value))
    if not settings["do_resize"]:
        raise WeightsError("do_resize is false; all images of a batch must have one size")
    if "resample" not in settings:
        raise WeightsError(f"resample is missing, and an {processor} has no default")
    if settings["resample"] not in _RESAMPLE:
        raise WeightsError(f"resample is {settings['resample']!r}; there are {_listed(_RESAMPLE)}")
    to_square = settings.get("default_to_square", processor not in _SHORTER_SIDE)
    image_size, resize = _sizes(settings, shorter_side=not to_square)
    filter_ = _RESAMPLE[settings["resample"]]
    resize += "" if filter_ == "bicubic" else f" {filter_}"
    resize += " floor" if settings["do_center_crop"] else ""
    return dict(views=dict(image=_pixels(settings)), image_size=image_size, resize=resize)


def _unknown(key, value):
    return f"{key} is {value!r}, which we do not know; --model.accept={key} ignores it"


def _listed(names):
    return ", ".join(f"{number} ({name})" for number, name in sorted(names.items()))


def _sizes(settings, shorter_side):
    """(image_size, the mode of `resize` and, if it is another, its side)."""
    size, crops = settings["size"], settings["do_center_crop"]
    keeps_aspect = shorter_side if isinstance(size, int) else not _has_both_sides(size)
    side = _side(settings, "size")
    image_size = _side(settings, "crop_size") if crops else side
    if keeps_aspect and not crops:
        raise WeightsError(f"size is {size} without do_center_crop; images would not be square")
    if image_size > side:
        raise WeightsError(f"crop_size is {image_size}, larger than size {side}; images would be padded")
    mode = "crop" if keeps_aspect else "stretch"
    return image_size, mode if image_size == side else f"{mode} {side}"


def _has_both_sides(size):
    return not isinstance(size, dict) or "height" in size


def _side(settings, key):
    """The side in a number, {"shortest_edge": number}, or two equal numbers for height and width."""
    value = settings.get(key)
    if isinstance(value, dict) and value.keys() <= {"height", "width", "shortest_edge"}:
        sides = set(value.values())
    else:
        sides = set(value) if isinstance(value, list | tuple) else {value if isinstance(value, int) else None}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int) or side < 1:
        raise WeightsError(f"{key} is {value}; it must contain one side")
    return side


def _pixels(settings):
    """A processor's ((factor * x - offset) - mean) / std, x from 0 to 255, as one mean and std of x / 255."""
    factor = settings["rescale_factor"] if settings["do_rescale"] else 1.0
    scale, offset = 255 * factor, float(settings["do_rescale"] and settings.get("rescale_offset", False))
    mean, std = np.zeros(3), np.ones(1)
    stored_std = per_channel("image_std", settings["image_std"])
    if settings["do_normalize"]:
        mean, std = per_channel("image_mean", settings["image_mean"]), stored_std
    if settings.get("include_top"):  # EfficientNet's divides once more
        std = std * stored_std
    pixels = dict(mean=(offset + mean) / scale, std=per_channel("image_std", std / scale))
    return {key: tuple(values.tolist()) for key, values in pixels.items()} | dict(flip=False)


def processor(config: ModelConfig) -> str:
    """The image processor class, of those for any vision model, that resizes as a ModelConfig does."""
    return "BitImageProcessor" if config["resize"].startswith("crop") else "ViTImageProcessor"


def describe(config: ModelConfig, processor: str) -> dict:
    """preprocessor_config.json of a ModelConfig, for transformers' image processor class `processor`."""
    size, view = config["image_size"], config["views"]["image"]
    mode, side, filter_, _ = parse_resize(config["resize"], size)
    return dict(
        do_resize=True,
        size=dict(shortest_edge=side) if mode == "crop" else dict(height=side, width=side),
        resample=int(FILTERS[filter_]),
        do_center_crop=mode == "crop" or side != size,
        crop_size=dict(height=size, width=size),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=np.broadcast_to(view["mean"], 3).tolist(),
        image_std=np.broadcast_to(view["std"], 3).tolist(),
        do_convert_rgb=True,
        image_processor_type=processor,
    )
