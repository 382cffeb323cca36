"""iBOT's models fine-tuned on ImageNet (Zhou et al. 2022, arXiv 2111.07832, appendix C), by BEiT's recipe
(Bao et al. 2022, arXiv 2106.08254): rates that fall from layer to layer, mixup and CutMix.

    python -m big_ssl.main --config=configs/ibot_imagenet.py:vitb16 --workdir=runs/ibot_ft \
        --config.init_from.path=runs/ibot --config.streams.images.data.source.data_dir=gs://bucket/tfds \
        --config.evals.imagenet.data.data_dir=gs://bucket/tfds
    python -m big_ssl.main --config=configs/ibot_imagenet.py:demo --workdir=runs/ibot_ft_demo

Presets: none, ViT-S/16; `vitb16`; `vitl16`; all start from weights, config.init_from.path, a run or what
`python -m big_ssl.convert --from=ibot` makes. `demo`, the ten categories of the embedded emoji drawings,
minutes on two CPU cores, from scratch or from runs/ibot_demo; `tiny`, seconds, for tests.

What differs from the published code: pictures are mixed with neighbours and not in reverse order, which is
as random; there is no RandAugment and no random erasing. The rate is one of the paper's four, which it
chooses from by the result.
"""

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji, ibot, imagenet
from configs.rehearsal import rehearsal

# README of the published code's evaluation; mix_group: the examples of a GPU.
MODELS: dict[str, dict[str, Any]] = {
    "vits16": dict(epochs=200, warmup=20, decay=0.75, drop_path=0.1, mix_group=128),
    "vitb16": dict(epochs=100, warmup=20, decay=0.65, drop_path=0.2, mix_group=128),
    "vitl16": dict(epochs=50, warmup=5, decay=0.75, drop_path=0.4, mix_group=64),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe, one of its presets, or changes to it; see big_ssl/recipe.py."""
    presets: dict[str, Callable[[], dict]] = {
        "": functools.partial(full, "vits16"),
        "vitb16": functools.partial(full, "vitb16"),
        "vitl16": functools.partial(full, "vitl16"),
        "demo": demo,
        "tiny": tiny,
        "rehearsal": lambda: rehearsal(full("vits16")),
    }
    return recipe.choose("ibot_imagenet", arg, presets)


def full(model: str) -> dict:
    """1,024 pictures a step."""
    chosen, config = MODELS[model], ibot.full(model)
    classification = dict(
        kind="classification",
        weight=1.0,
        classes=imagenet.CLASSES,
        label="label",
        view="crops",
        loss="softmax",
        label_smoothing=0.1,
    )
    config.update(
        name=f"ibot_{model}_imagenet",
        total_steps=chosen["epochs"] * imagenet.EPOCH,
        requires=dict(weights=True, preset_here="demo"),
        # Of a run's heads none is of use here, and published backbones have no mask token.
        init_from=dict(path="", skip=("heads/", "mask_token$"), copy=()),
        streams=dict(
            images=dict(
                batch_size=imagenet.BATCH,
                data=imagenet.data(size=224, resize=256, crop=224),
                objectives=dict(classification=classification),
            )
        ),
        views=dict(
            crops=dict(**imagenet.PIXELS, flip=True, mixup=0.8, cutmix=1.0, mix_group=chosen["mix_group"]),
            image=dict(imagenet.PIXELS),
        ),
        masks=dict(),
        learning_rate=dict(
            kind="cosine",
            peak=1e-3,  # of 8e-4, 9e-4, 1e-3 and 2e-3
            warmup_steps=chosen["warmup"] * imagenet.EPOCH,
            start=0.0,
            final=1e-6,
        ),
        rates=(("encoders/", dict(kind="layer_decay", decay=chosen["decay"])),),
        ema=0.0,
        eval_every=imagenet.EPOCH,
        checkpoint=dict(every=imagenet.EPOCH, keep=2, best=imagenet.BEST),
        evals=imagenet.evals(),
    )
    config["encoders"]["image"].update(drop_path=chosen["drop_path"])
    config["optimizer"].update(
        weight_decay=0.05,
        # All that is one-dimensional, and what BEiT's code names.
        decay_exclude=("_norm/", "bias$", "_token$", "position_embedding$"),
        clip_norm=0.0,
        clip_per="all",
    )
    return config


def demo() -> dict:
    """Ten categories of 6,803 emoji drawings, by the tower of configs/ibot_vits16.py:demo."""
    config = full("vits16")
    config.update(
        name="ibot_imagenet_demo",
        total_steps=600,
        dtype="float32",
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        encoders=ibot.demo("vits16")["encoders"],
        rates=(("encoders/", dict(kind="layer_decay", decay=0.9)),),
        log_every=20,
        eval_every=150,
        checkpoint=dict(every=150, keep=2, best="eval/classification/twemoji/top1"),
        evals=emoji.classified(),
    )
    config["learning_rate"].update(peak=2e-3, warmup_steps=60)
    config["optimizer"].update(b2=0.98)
    images = config["streams"]["images"]
    images.update(batch_size=128, data=emoji.crops(size=48))
    images["objectives"]["classification"].update(classes=emoji.CATEGORIES, label="category")
    config["views"]["crops"].update(mix_group=16)
    return config


def tiny() -> dict:
    """The demo's code path in seconds."""
    config = demo()
    config.update(name="ibot_imagenet_tiny", total_steps=10, log_every=2, eval_every=5)
    config.update(encoders=ibot.tiny("vits16")["encoders"], evals=emoji.classified(("fxemoji",)))
    config["checkpoint"].update(every=5, best="eval/classification/fxemoji/top1")
    config["learning_rate"].update(warmup_steps=2)
    images = config["streams"]["images"]
    images.update(batch_size=16, data=emoji.few_crops(size=32))
    config["views"]["crops"].update(mix_group=4)
    return config
