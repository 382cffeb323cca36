"""DINOv3's own files of ViTs: a public backbone, or the teacher of a training.

The names are those that transformers' script for converting them reads. The positions are rotary: their
periods are stored, their base is not. The norm of local crops' class tokens is not used after training.
"""

from collections.abc import Mapping

import numpy as np

from big_ssl.models import vit
from big_ssl.models.rotary import rope_periods
from big_ssl.weights import dino_layers
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGENET_PIXELS, Format, ModelConfig, count, image_config, shape_of

_PERIODS = "rope_embed.periods"
_REGISTERS = "storage_tokens"
_SWIGLU = ("mlp.w1", "mlp.w2", "mlp.w3")
_DTYPES = ("float32", "bfloat16", "float16")
_BIAS, _BIAS_MASK = "attn.qkv.bias", "attn.qkv.bias_mask"
# The public models' preprocessing, see the same script.
_PREPROCESSING = dict(views=dict(image=IMAGENET_PIXELS), resize="stretch bilinear")


def _config(tensors, files, options) -> ModelConfig:
    del files
    width, _, _, patch = shape_of(tensors, "patch_embed.proj.weight", 4)
    swiglu = f"blocks.0.{_SWIGLU[0]}.weight" in tensors
    image = vit.DINOV3 | dict(
        patch=patch,
        width=width,
        depth=count(tensors, r"blocks\.(\d+)\."),
        mlp_dim=shape_of(tensors, f"blocks.0.{_SWIGLU[0] if swiglu else 'mlp.fc1'}.weight", 2)[0],
        feed_forward="swiglu" if swiglu else "mlp",
        qkv_bias=_qkv_bias(tensors),
        registers=shape_of(tensors, _REGISTERS, 3)[1] if _REGISTERS in tensors else 0,
        mask_token="mask_token" in tensors,
        **_rope(tensors, width, options.get("rope_base", vit.DINOV3["rope_base"])),
    )
    return image_config(image, image_size=224, **_PREPROCESSING)


def _rope(tensors, width, base) -> dict:
    """The options heads, rope_base and rope_dtype, from the periods of one head."""
    periods = np.asarray(tensors[_PERIODS], np.float32) if _PERIODS in tensors else np.zeros(0)
    head_dim = 4 * periods.size
    if periods.ndim != 1 or not head_dim or width % head_dim:
        raise WeightsError(
            f"{_PERIODS} is {list(periods.shape)}; it must have one axis, and be a quarter of a head"
        )
    for dtype in _DTYPES:
        if np.allclose(periods, rope_periods(head_dim, base, dtype), rtol=1e-6, atol=0):
            return dict(heads=width // head_dim, rope_base=base, rope_dtype=dtype)
    raise WeightsError(f"{_PERIODS} are not of the base {base}; --model.rope_base gives another")


def _qkv_bias(tensors) -> str:
    """The option qkv_bias. A mask, where there is one, must be of the keys' bias alone, and of all layers."""
    masks = [np.asarray(x, np.float32) for name, x in tensors.items() if name.endswith(_BIAS_MASK)]
    if not all(np.array_equal(mask, np.repeat([1, 0, 1], mask.size // 3)) for mask in masks):
        raise WeightsError(f"{_BIAS_MASK} is not one for queries and values and zero for keys")
    if not any(name.endswith(_BIAS) for name in tensors):
        return ""
    if masks and len(masks) != count(tensors, r"blocks\.(\d+)\."):
        raise WeightsError(f"{_BIAS_MASK} is in {len(masks)} layers, and not in the others")
    return "qv" if masks else "qkv"


def _prepare(tensors: Mapping, options: Mapping) -> dict:
    """Removes the prefixes of a training's teacher."""
    del options
    return {name.removeprefix("teacher.").removeprefix("backbone."): x for name, x in tensors.items()}


FORMAT = Format(
    config=_config,
    rules=lambda config: dino_layers.rules(config, registers=_REGISTERS, swiglu=_SWIGLU),
    ignored=(
        # Read by _config.
        r"rope_embed\.periods",
        r"blocks\.\d+\.attn\.qkv\.bias_mask",
        # Used in training alone; the heads' prototypes have no weight norm, unlike ours.
        r"local_cls_norm\..*",
        r"(dino|ibot)_head\..*",
    ),
    options=("rope_base",),
    prepare=_prepare,
)
