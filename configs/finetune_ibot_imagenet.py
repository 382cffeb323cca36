"""iBOT's models fine-tuned on ImageNet (Zhou et al. 2022, arXiv 2111.07832, appendix C), by BEiT's recipe
(Bao et al. 2022, arXiv 2106.08254): layer-wise learning-rate decay, mixup and CutMix.

    python -m big_ssl.main --config=configs/finetune_ibot_imagenet.py:vitb16 --workdir=runs/ibot_ft \
        --config.init_from.path=runs/ibot --config.streams.images.data.source.data_dir=gs://bucket/tfds \
        --config.evals.imagenet.data.data_dir=gs://bucket/tfds
    python -m big_ssl.main --config=configs/finetune_ibot_imagenet.py:demo --workdir=runs/ibot_ft_demo

Models: `vits16` (the default), `vitb16` and `vitl16`. They start from weights (--config.init_from.path): a
run, or what `python -m big_ssl.convert --from=ibot` makes. Presets: `demo` learns the ten categories of the
embedded emoji drawings, in minutes on two CPU cores, from scratch or from runs/ibot_demo; `tiny` is the demo
in seconds, for tests; `rehearsal` is for launch/rehearse.sh.

Values are from the README of the published code's evaluation. What differs: images are mixed with neighbours
and not in reverse order, which is as random; there is no RandAugment and no random erasing.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji, imagenet
from configs.rehearsal import shrink

# decay: of the learning rate, from layer to layer. mix_group: the examples of a GPU.
MODELS: dict[str, dict[str, Any]] = {
    "vits16": dict(
        encoder=dict(width=384, depth=12, heads=6, drop_path=0.1),
        epochs=200,
        warmup=20,
        decay=0.75,
        mix_group=128,
    ),
    "vitb16": dict(
        encoder=dict(width=768, depth=12, heads=12, drop_path=0.2),
        epochs=100,
        warmup=20,
        decay=0.65,
        mix_group=128,
    ),
    "vitl16": dict(
        encoder=dict(width=1024, depth=24, heads=16, drop_path=0.4),
        epochs=50,
        warmup=5,
        decay=0.75,
        mix_group=64,
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {"": full, "demo": demo, "tiny": tiny}
    presets["rehearsal"] = lambda model: shrink(full(model))
    return recipe.choose("finetune_ibot_imagenet", arg, presets, MODELS)


def full(model: str) -> dict:
    """1,024 images a step."""
    published = MODELS[model]
    return dict(
        name=f"ibot_{model}_imagenet",
        seed=0,
        total_steps=published["epochs"] * imagenet.EPOCH,
        dtype="bfloat16",
        streams=dict(images=_images(published["mix_group"])),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **imagenet.PIXELS),
        encoders=dict(
            image=dict(
                kind="vit",
                patch=16,
                **published["encoder"],
                image_size=224,
                epsilon=1e-6,
                pooling="cls",
                kernel_init="dino",
                mask_token=True,
                position_resize="dinov2",
                scan=True,
            )
        ),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.05,
            # All that is one-dimensional, and what BEiT's code names.
            weight_decay_exclude=("_norm/", "bias$", "_token$", "position_embedding$"),
            trust_ratio_exclude=(),
            clip_norm=0.0,
            clip_scope="all",
        ),
        learning_rate=dict(
            kind="cosine",
            peak=1e-3,  # of the paper's 8e-4, 9e-4, 1e-3 and 2e-3, from which it selects by the result
            warmup_steps=published["warmup"] * imagenet.EPOCH,
            start=0.0,
            final=1e-6,
        ),
        lr_multipliers=(("encoders/", dict(kind="layer_decay", decay=published["decay"])),),
        ema=0.0,
        # The heads of a run are not used here, and published backbones have no mask token.
        init_from=dict(path="", exclude=("heads/", "mask_token$"), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=1, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",
        requires=dict(weights=True, preset_here="demo"),
        profile=0,
        log_every=100,
        eval_every=imagenet.EPOCH,
        checkpoint=dict(every=imagenet.EPOCH, keep=2, best=imagenet.BEST),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=imagenet.evals(),
        predictors=dict(),
    )


def _images(mix_group):
    return dict(
        batch_size=imagenet.BATCH,
        data=imagenet.data(
            size=224, **imagenet.PIXELS, flip=True, mixup=0.8, cutmix=1.0, mix_group=mix_group
        ),
        objectives=dict(
            classification=dict(
                kind="classification",
                weight=1.0,
                classes=imagenet.CLASSES,
                view="crops",
                loss="softmax",
                label_smoothing=0.1,
            )
        ),
    )


def demo() -> dict:
    """Ten categories of 6,803 emoji drawings, with the encoder of configs/ibot.py:vits16,demo."""
    config = full("vits16")
    config.update(
        name="ibot_imagenet_demo",
        total_steps=600,
        dtype="float32",
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        lr_multipliers=(("encoders/", dict(kind="layer_decay", decay=0.9)),),
        log_every=20,
        eval_every=150,
        checkpoint=dict(every=150, keep=2, best="eval/classification/twemoji/top1"),
        evals=emoji.classified(),
    )
    config["learning_rate"].update(peak=2e-3, warmup_steps=60)
    config["optimizer"].update(b2=0.98)
    images = config["streams"]["images"]
    images.update(batch_size=128, data=emoji.crops(images["data"]["fields"], size=48))
    images["data"]["fields"]["crops"].update(mix_group=16)
    images["objectives"]["classification"].update(classes=emoji.CATEGORIES)
    config["eval_transform"].update(size=48, resize=48)
    config["encoders"]["image"].update(
        patch=12, width=128, depth=4, heads=4, image_size=48, drop_path=0.0, scan=False
    )
    return config


def tiny() -> dict:
    """The demo with a narrower encoder and small batches, in seconds."""
    config = demo()
    config.update(name="ibot_imagenet_tiny", total_steps=10, log_every=2, eval_every=5)
    config.update(evals=emoji.classified(("fxemoji",)))
    config["checkpoint"].update(every=5, best="eval/classification/fxemoji/top1")
    config["learning_rate"].update(warmup_steps=2)
    images = config["streams"]["images"]
    images.update(batch_size=16, data=emoji.few_crops(images["data"]["fields"], size=32))
    images["data"]["fields"]["crops"].update(mix_group=4)
    config["eval_transform"].update(size=32, resize=32)
    config["encoders"]["image"].update(patch=8, width=32, depth=1, heads=2, image_size=32)
    return config
