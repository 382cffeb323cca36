"""DINOv2's published models trained on with your own pictures, without labels.

    python -m big_ssl.convert --from=hf_dinov2 --input=dinov2-base --output=dinov2_vitb14
    python -m big_ssl.main --config=configs/dinov2_continue.py:vitb14 --workdir=runs/mine \
        --config.init_from.path=dinov2_vitb14 --config.streams.images.data.source.path=my_pictures

my_pictures is a folder of pictures, with subfolders or without. Presets: `vits14`, the default, `vitb14`,
`vitl14`, `vitg14`, each with `_reg` for the models with registers; `demo` continues runs/dinov2_demo on the
emoji drawings, `tiny` starts from nothing.

The published backbones come without the heads that they were trained with, and new heads would pull a
backbone that knows much after themselves, who know nothing: so for the first 1,250 steps only the heads
learn, and then the backbone, at a tenth of their rate. No recipe for this was published; these values are
ours, untried at full size. A training's own teacher_checkpoint.pth has heads, which --from=dinov2 keeps: for
those this file's heads must be given their sizes, and init_from.skip be ().
"""

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from big_ssl.models import vit
from configs import dinov2
from configs.rehearsal import rehearsal

_MODELS = {"vits14": "S/14", "vitb14": "B/14", "vitl14": "L/14", "vitg14": "g/14"}
_HEADS_ALONE = 1_250
_STEPS = 25_000


def full(model: str, registers: int = 0) -> dict:
    """25,000 steps of 512 pictures."""
    config = dinov2.full("vitl16_short")
    tower: dict[str, Any] = {**vit.VARIANTS[_MODELS[model]], "registers": registers}
    config["encoders"]["image"].update({"feed_forward": "mlp", **tower})
    # The published tables are of 518 pixels; with registers they are resized otherwise.
    config["encoders"]["image"].update(
        image_size=518,
        position_resize="bicubic_antialias" if registers else "dinov2",
        drop_path=0.1,
        drop_path_groups=32,
    )
    config.update(
        name=f"dinov2_continue_{model}",
        total_steps=_STEPS,
        requires=dict(config["requires"], weights=True),
        init_from=dict(path="", skip=("heads/",), copy=()),
        eval_every=2_500,
        rates=_rates(_HEADS_ALONE),
    )
    config["learning_rate"].update(peak=1e-3, warmup_steps=_HEADS_ALONE)
    config["ema"].update(peak=0.994)
    images = config["streams"]["images"]
    images.update(batch_size=512)
    images["data"].update(source=dict(kind="image_folder", path=""), threads=16)
    images["data"]["views"]["local_crops"].update(size=98)
    for term in ("dino", "ibot"):
        images["objectives"][term]["teacher_temperature"].update(warmup_steps=2 * _HEADS_ALONE)
    images["objectives"]["koleo"].update(group_size=16)
    config["masks"]["global_crops"].update(grid=16)
    return config


def _rates(heads_alone):
    """The backbone waits for the heads, and is slower than they."""
    waits = dict(kind="steps", values=((0, 0.0), (heads_alone, 0.1)))
    return (("encoders/", waits),)


def demo() -> dict:
    """DINOv2's demo, continued, with new heads."""
    config = dinov2.demo("vitl16_short")
    path = dict(path="runs/dinov2_demo", skip=("heads/",), copy=())
    config.update(name="dinov2_continue_demo", init_from=path, rates=_rates(50))
    return config


def tiny() -> dict:
    """The demo's code path in seconds."""
    config = dinov2.tiny("vitl16_short")
    config.update(name="dinov2_continue_tiny", rates=_rates(5))
    return config


def get_config(arg: str = "") -> ConfigDict:
    """The recipe, one of its presets, or changes to it."""
    presets: dict[str, Callable[[], dict]] = {
        "": functools.partial(full, "vits14"),
        "demo": demo,
        "tiny": tiny,
        "rehearsal": lambda: rehearsal(full("vits14")),
    }
    for model in _MODELS:
        presets[model] = functools.partial(full, model)
        presets[f"{model}_reg"] = functools.partial(full, model, registers=4)
    return recipe.choose("dinov2_continue", arg, presets)
