"""Semantic segmentation on a pre-trained image encoder, by DINOv2's protocol (Oquab et al. 2023, arXiv
2304.07193, section 7.4): a linear head on frozen features, or UPerNet on a trained encoder, on ADE20K.

    python -m big_ssl.convert --from=dinov2 --input=dinov2_vitb14_pretrain.pth --output=dinov2_vitb14
    python -m big_ssl.main --config=configs/transfer_segmentation.py:vitb14 --workdir=runs/ade20k \
        --config.init_from.path=dinov2_vitb14
    python -m big_ssl.main --config=configs/transfer_segmentation.py:demo --workdir=runs/segmentation_demo
    python -m big_ssl.predict --checkpoint=runs/segmentation_demo --task=segment --images=DIR --output=DIR

The folder ADEChallengeData2016 is read from where the command runs; gs:// works in the patterns, too.
Models: DINOv2's `vitb14` (the default), `vits14`, `vitl14` and `vitg14`, and Swin's `swin_t`. Any other
encoder is one entry of MODELS, any weights are --config.init_from.path. Presets: `ms` is the published
multi-scale form, four layers and larger crops; `tuned` also trains the encoder, after the head alone;
`upernet` trains UPerNet and the encoder with layer-wise decay, of a ViT on ViTDet's simple feature pyramid.
`demo` learns the classes of the pixels of composited scenes, in minutes on two CPU cores, from scratch;
`tiny` is the demo in seconds, for tests. The demo reaches a mIoU of 0.32 with the seeds 0 and 1; the same
head on a random encoder that stays frozen 0.09, about that of background alone (0.08); the best class of each
colour, counted on 1,000 training scenes, 0.15.

Published, from DINOv2's configs for ADE20K: the heads, AdamW with its rate, decay and warm-up, 40,000 steps
of 16 images, scales, flips, windows. `# open` marks what is not published.

What differs, and why:
- Of patches of 14 pixels crops and windows are 518 and 644 pixels, 37 and 46 patches, in place of 512 and
  640, which the published code pads to these; strides are two thirds and a half of them, as published.
- The rate falls linearly from the end of the warm-up, not from the first step, which its start is 1.04 of.
- No crop is drawn again because one class fills three quarters of it.
- Colours change by `jitter` in place of MMSegmentation's photometric distortion, which shifts brightness
  instead of scaling it and draws each change by itself. The padding of small images is grey, not black.
- UPerNet has no auxiliary head.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe

_PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_CLASSES = 150


def _dinov2(width, depth, heads, feed_forward="mlp") -> dict[str, Any]:
    """A released DINOv2."""
    return dict(
        sides=(518, 644),
        layers=(-4, -3, -2, -1),
        # UPerNet gets the maps that this makes of the last one.
        neck=dict(kind="simple_feature_pyramid", channels=width, strides=(4, 8, 16, 32)),
        encoder=dict(
            kind="vit",
            patch=14,
            width=width,
            depth=depth,
            heads=heads,
            feed_forward=feed_forward,
            image_size=518,
            epsilon=1e-6,
            pooling="cls",
            kernel_init="dinov2",
            mask_token=True,
            position_resize="dinov2",
            layer_scale=1e-5,
            scan=True,
        ),
    )


MODELS: dict[str, dict[str, Any]] = {
    "vitb14": _dinov2(768, 12, 12),
    "vits14": _dinov2(384, 12, 6),
    "vitl14": _dinov2(1024, 24, 16),
    "vitg14": _dinov2(1536, 40, 24, "swiglu"),
    "swin_t": dict(
        sides=(512, 640),
        layers=(),
        neck=None,
        encoder=dict(
            kind="swin",
            width=96,
            depths=(2, 2, 6, 2),
            heads=(3, 6, 12, 24),
            window=7,
            clamp_window=False,
            scan=True,
        ),
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {
        "": full,
        "ms": ms,
        "tuned": tuned,
        "upernet": upernet,
        "demo": demo,
        "tiny": tiny,
    }
    return recipe.choose("transfer_segmentation", arg, presets, MODELS)


def full(model: str) -> dict:
    """A linear head on the last layer of a frozen encoder."""
    side = MODELS[model]["sides"][0]
    evaluator = dict(
        kind="segmentation",
        data=_ade20k("validation"),
        key="mask",
        classes=_CLASSES,
        reduce_zero_label=True,
        per_class=False,
        window=side,
        stride=side * 2 // 3,
    )
    return dict(
        name=f"segmentation_{model}",
        seed=0,
        total_steps=40_000,
        dtype="bfloat16",
        streams=dict(scenes=_scenes(side)),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        # The shorter side; classes are predicted in windows, without the crop.
        eval_transform=dict(size=side, resize=side, resize_mode="crop", filter="bilinear", **_PIXELS),
        encoders=dict(image=dict(MODELS[model]["encoder"])),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=1e-4,
            weight_decay_exclude=(),
            trust_ratio_exclude=(),
            clip_norm=0.0,
            clip_scope="all",
        ),
        learning_rate=dict(kind="linear", peak=1e-3, warmup_steps=1_500, start=1e-9, final=0.0),
        lr_multipliers=(("encoders/", 0.0),),  # frozen
        ema=0.0,
        # The heads of a run are not used here, and public backbones may have no mask token.
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
        eval_every=4_000,
        checkpoint=dict(every=4_000, keep=2, best="eval/segmentation/ade20k/miou"),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(ade20k=evaluator),
        predictors=dict(),
    )


def _scenes(side):
    return dict(
        batch_size=16,
        data=dict(
            source=_ade20k("training"),
            fields=dict(
                image=dict(
                    kind="image",
                    crop=dict(kind="random_scale_crop", size=side, scale=(0.5, 2.0), short=512, long=2_048),
                    **_PIXELS,
                    flip=True,
                    jitter=(0.125, 0.5, 0.5, 0.1),
                    jitter_prob=0.5,
                ),
                mask=dict(
                    kind="mask", image="image", key="mask", num_classes=_CLASSES, reduce_zero_label=True
                ),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=dict(
            segmentation=dict(
                kind="segmentation",
                weight=1.0,
                classes=_CLASSES,
                head=dict(kind="linear"),
                layers=(),
            )
        ),
    )


def _ade20k(part):
    """SceneParsing's files: 150 classes from 1 on, 0 for none."""
    folder = "ADEChallengeData2016"
    return dict(
        kind="image_maps",
        images=f"{folder}/images/{part}/{{}}.jpg",
        maps=dict(mask=f"{folder}/annotations/{part}/{{}}.png"),
    )


def ms(model: str) -> dict:
    """Four layers, larger crops, and five scales with flips in evaluation."""
    config, side = full(model), MODELS[model]["sides"][1]
    config.update(name=f"segmentation_{model}_ms")
    _objective(config).update(layers=MODELS[model]["layers"])
    config["streams"]["scenes"]["data"]["fields"]["image"]["crop"].update(size=side, short=640, long=2_560)
    config["eval_transform"].update(size=side, resize=side)
    scales = (1.0, 1.32, 1.73, 2.28, 3.0)
    config["evals"]["ade20k"].update(window=side, stride=side // 2, scales=scales, flip=True)
    return config


def tuned(model: str) -> dict:
    """The linear head with its encoder: the head alone at first, then both. open, all of it."""
    config = full(model)
    config.update(
        name=f"segmentation_{model}_tuned",
        lr_multipliers=(("encoders/", dict(kind="steps", values=((0, 0.0), (1_600, 0.01)))),),
        ema=0.999,
    )
    return config


def upernet(model: str) -> dict:
    """UPerNet with its encoder. open: rates and decays, near those of BEiT's and Swin's code, from memory,
    and the average of weights."""
    config, published = full(model), MODELS[model]
    decay = dict(kind="layer_decay", decay=0.9)
    config.update(name=f"segmentation_{model}_upernet", ema=0.999, lr_multipliers=(("encoders/", decay),))
    head = dict(kind="upernet", channels=512, dropout=0.1, map_norm=published["neck"] is None)
    if published["neck"]:
        head.update(neck=dict(published["neck"]))
    _objective(config).update(head=head)
    config["optimizer"].update(
        weight_decay=0.05, weight_decay_exclude=("norm", "position_embedding$", "class_token$", "bias$")
    )
    config["learning_rate"].update(peak=6e-5, start=6e-11)
    return config


def _objective(config):
    return config["streams"]["scenes"]["objectives"]["segmentation"]


def demo() -> dict:
    """2,000 composited scenes of 72 pixels; the encoder waits for the head, and then trains at its rate."""
    config = full("vitb14")
    config.update(
        name="segmentation_demo",
        total_steps=800,
        dtype="float32",
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        lr_multipliers=(("encoders/", dict(kind="steps", values=((0, 0.0), (50, 1.0)))),),
        ema=0.98,
        log_every=20,
        eval_every=200,
        checkpoint=dict(every=200, keep=2, best="eval/segmentation/composited/miou"),
    )
    config["learning_rate"].update(peak=2e-3, warmup_steps=100, start=0.0, final=1e-5)
    config["optimizer"].update(b2=0.98, clip_norm=1.0)
    _use_scenes(config, size=72, training=2_000, testing=200)
    config["encoders"]["image"].update(
        patch=8, width=128, depth=4, heads=4, image_size=72, layer_scale=1.0, scan=False
    )
    return config


def tiny() -> dict:
    """The demo with a narrower encoder, small batches and few scenes, in seconds."""
    config = demo()
    config.update(name="segmentation_tiny", total_steps=10, log_every=2, eval_every=5, ema=0.5)
    config["checkpoint"].update(every=5)
    config["learning_rate"].update(warmup_steps=2)
    config["lr_multipliers"] = (("encoders/", dict(kind="steps", values=((0, 0.0), (4, 1.0)))),)
    config["streams"]["scenes"].update(batch_size=8)
    _use_scenes(config, size=32, training=32, testing=8)
    config["encoders"]["image"].update(width=32, depth=2, heads=2, image_size=32)
    return config


# The composited scenes of the demo: nine classes of three kinds, so that each has many examples.
_PASTED = (
    *("elephant", "tropical fish", "penguin"),
    *("watermelon", "banana", "strawberry"),
    *("bus", "bicycle", "tractor"),
)


def _use_scenes(config, size, training, testing):
    """Trains and evaluates on so many scenes of `size` pixels, with the background as class 0."""

    def source(split, scenes):
        return dict(kind="composited_scenes", split=split, size=size, scenes=scenes, classes=_PASTED)

    data, classes = config["streams"]["scenes"]["data"], 1 + len(_PASTED)
    data.update(source=source("train", training), threads=2, cache_mib=64)
    data["fields"]["image"]["crop"] = dict(
        kind="random_resized_crop", size=size, scale=(0.4, 1.0), ratio=(1.0, 1.0), count=1
    )
    data["fields"]["mask"].update(num_classes=classes, reduce_zero_label=False)
    config["streams"]["scenes"]["objectives"]["segmentation"].update(classes=classes)
    config["eval_transform"].update(size=size, resize=size)
    config["evals"] = dict(composited=dict(kind="segmentation", data=source("test", testing), key="mask"))
