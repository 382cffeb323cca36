"""Object detection on a pre-trained image encoder, by Florence's detector on COCO: a feature pyramid, Dynamic
Head and ATSS (Yuan et al. 2021, arXiv 2111.11432, sections 2.4 and 3.6; Dai et al. 2021, arXiv 2106.08322).

    python -m big_ssl.main --config=configs/transfer_detection.py:coswin_h --workdir=runs/coco \
        --config.init_from.path=gs://bucket/florence --config.evals.coco.data.data_dir=gs://bucket/tfds \
        --config.streams.scenes.data.source.data_dir=gs://bucket/tfds
    python -m big_ssl.main --config=configs/transfer_detection.py:demo --workdir=runs/detection_demo
    python -m big_ssl.predict --checkpoint=runs/detection_demo --task=detect --images=PHOTOS --output=drawn

Models: `coswin_h` (the default), `coswin_b` and `swin_t`, whose maps a feature pyramid reads, and `vitb14`,
DINOv2's, with ViTDet's simple feature pyramid. Any other encoder is one entry of MODELS, any weights are
--config.init_from.path. Presets: `frozen` trains the detector alone; `staged` trains it alone at first, then
the encoder too, at lower rates in lower layers; `class_agnostic` learns one class, object, on a frozen
encoder, for zero-shot detection: `model.detect(images, class_names)` classifies its boxes by text, if the run
also has a contrastive objective. `demo` detects nine classes in composited scenes, in minutes on two CPU
cores, a small ViT from scratch; `demo_frozen` is the same head on a randomly initialised frozen encoder, to
compare with; `tiny` runs in seconds, for tests, on a small CoSwin.

Published for COCO: the detector, pre-trained on nine million images with boxes; 12 epochs; several scales in
training; a longest side of 2,500 pixels. `swin_t` has the settings of Dynamic Head's code
(dyhead_swint_atss_fpn_2x_ms.yaml): 90,000 steps of 32 images, AdamW, its rates and weight decay, images of
640 to 800 pixels. `# open` marks what Florence does not publish, and where our values come from.

What differs, and why:
- Crops are squares of one size, at random scales, since the step has static shapes; the published codes pad
  the images of a batch to its largest.
- Nothing is pre-trained on other boxes: the data, FLOD-9M, is not public.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe

_PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# COCO 2017: images of training, and classes.
_IMAGES, _CLASSES = 118_287, 80
_FPN = dict(kind="fpn", channels=256, strides=(8, 16, 32, 64, 128), map_norm=True)


def _swin(epochs, batch, size, short, long, **encoder) -> dict[str, Any]:
    """size: of a training crop. short, long: sides of images, in evaluation and at the largest scale."""
    return dict(
        epochs=epochs,
        batch=batch,
        size=size,
        short=short,
        long=long,
        neck=_FPN,
        # Detection pads maps to whole windows, and shifts them in every map.
        encoder=dict(kind="swin", clamp_window=False, scan=True) | encoder,
    )


MODELS: dict[str, dict[str, Any]] = {
    # open: the batch, the crop and the shorter side. See configs/florence.py for the encoders.
    "coswin_h": _swin(
        12,
        32,
        1280,
        1500,
        2500,
        width=352,
        depths=(2, 2, 16, 2),
        heads=(11, 22, 44, 88),
        window=12,
        embedding="conv",
        drop_path=0.5,
    ),
    "coswin_b": _swin(
        12,
        32,
        1280,
        1500,
        2500,
        width=128,
        depths=(2, 2, 18, 2),
        heads=(4, 8, 16, 32),
        window=7,
        embedding="conv",
        drop_path=0.5,
    ),
    "swin_t": _swin(
        24, 32, 800, 800, 1333, width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7, drop_path=0.2
    ),
    "vitb14": dict(
        epochs=12,
        batch=32,
        size=798,  # 57 patches
        short=798,
        long=1330,
        neck=dict(kind="simple_feature_pyramid", channels=256, strides=(8, 16, 32, 64, 128)),
        encoder=dict(
            kind="vit",
            patch=14,
            width=768,
            depth=12,
            heads=12,
            feed_forward="mlp",
            image_size=518,
            epsilon=1e-6,
            pooling="cls",
            kernel_init="dinov2",
            mask_token=True,
            position_resize="dinov2",
            layer_scale=1e-5,
            scan=True,
        ),
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {
        "": full,
        "frozen": frozen,
        "staged": staged,
        "class_agnostic": class_agnostic,
        "demo": demo,
        "demo_frozen": demo_frozen,
        "tiny": tiny,
    }
    return recipe.choose("transfer_detection", arg, presets, MODELS)


def full(model: str) -> dict:
    """All layers from the first step."""
    published = MODELS[model]
    steps = recipe.epochs(published["epochs"], _IMAGES, published["batch"])
    return dict(
        name=f"detection_{model}",
        seed=0,
        total_steps=steps,
        dtype="bfloat16",
        streams=dict(scenes=_scenes(published)),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        # The shorter side; the longer one is max_side of the objective.
        eval_transform=dict(
            size=published["short"],
            resize=published["short"],
            resize_mode="crop",
            filter="bilinear",
            **_PIXELS,
        ),
        encoders=dict(image=dict(published["encoder"])),
        optimizer=dict(
            name="adamw",
            # open for Florence: the values of Dynamic Head's code for swin_t.
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.05,
            weight_decay_exclude=("norm/", "bias$", "position_bias/table$", "position_embedding$", "scale$"),
            trust_ratio_exclude=(),
            clip_norm=1.0,  # open
            clip_scope="all",
        ),
        learning_rate=dict(kind="steps", values=_rates(steps)),
        lr_multipliers=(("encoders/", 0.1),),  # open
        ema=0.9998,  # open
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
        eval_every=_IMAGES // published["batch"],
        checkpoint=dict(every=2_000, keep=2, best="eval/detection/coco/AP"),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(
            coco=dict(
                kind="detection",
                data=_coco("validation"),
                crowd="objects/is_crowd",
                area="objects/area",
                image_id="image/id",
                category_ids="coco",
            )
        ),
        predictors=dict(),
    )


def _rates(steps):
    """1e-4, a tenth of it after two thirds and a hundredth after eight ninths; open: a tenth before that."""
    starts = (0, min(1_000, steps // 10), steps * 2 // 3, steps * 8 // 9)
    return tuple(zip(starts, (1e-5, 1e-4, 1e-5, 1e-6), strict=True))


def _scenes(published):
    return dict(
        batch_size=published["batch"],
        data=dict(
            source=_coco("train"),
            fields=dict(
                image=dict(
                    kind="image",
                    # open: the scales. Sides are up to short and long, see MODELS.
                    crop=dict(
                        kind="random_scale_crop",
                        size=published["size"],
                        scale=(0.5, 1.0),
                        short=published["short"],
                        long=published["long"],
                    ),
                    **_PIXELS,
                    flip=True,
                ),
                boxes=dict(
                    kind="boxes",
                    image="image",
                    key="objects/bbox",
                    class_key="objects/label",
                    ignore_key="objects/is_crowd",
                    max_boxes=100,
                    order="yxyx",
                    normalized=True,
                ),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=dict(
            detection=dict(
                kind="detection",
                weight=1.0,
                classes=_CLASSES,
                neck=published["neck"],
                blocks=6,
                groups=16,
                class_agnostic=False,
                max_side=published["long"],
                nms_threshold=0.6,
                candidates=1000,
                anchor_scale=8.0,
            )
        ),
    )


def _coco(split):
    keys = ("image/id", "objects/bbox", "objects/label", "objects/is_crowd", "objects/area")
    return dict(
        kind="tfds",
        name="coco/2017",
        split=split,
        data_dir="",
        image_key="image",
        text_keys=keys,
        orientation="stored",  # boxes are those of the images as they are stored
    )


def frozen(model: str) -> dict:
    """The detector alone."""
    config = full(model)
    config.update(name=f"detection_{model}_frozen", lr_multipliers=(("encoders/", 0.0),))
    return config


def staged(model: str) -> dict:
    """The detector alone in the first sixth of the steps, then all layers, lower ones at lower rates.

    open, all of it; the factors of a pattern that matches a parameter twice are multiplied.
    """
    config = full(model)
    thaw = dict(kind="steps", values=((0, 0.0), (config["total_steps"] // 6, 1.0)))
    config.update(
        name=f"detection_{model}_staged",
        lr_multipliers=(("encoders/", thaw), ("encoders/image/", dict(kind="layer_decay", decay=0.9))),
    )
    return config


def class_agnostic(model: str) -> dict:
    """Section 3.6, zero-shot: a frozen encoder and proposals without classes."""
    config = frozen(model)
    config.update(name=f"detection_{model}_class_agnostic")
    _objective(config).update(class_agnostic=True)
    return config


def _objective(config):
    return config["streams"]["scenes"]["objectives"]["detection"]


# The composited scenes of the demo: nine classes of three kinds, so that each has many examples.
_PASTED = (
    *("elephant", "tropical fish", "penguin"),
    *("watermelon", "banana", "strawberry"),
    *("bus", "bicycle", "tractor"),
)


def demo() -> dict:
    """2,000 composited scenes of 96 pixels; a small ViT from scratch, all layers from the first step.

    Eight minutes on two cores with other load: AP50 54.4% in an unseen style, AP 26.7%; of `demo_frozen`
    41.3%: the neck and Dynamic Head by themselves learn much. One seed.
    """
    config = full("vitb14")
    _small(config, name="detection_demo", size=96, training=2_000, testing=200)
    config.update(total_steps=1_500, log_every=20, eval_every=500)
    config["checkpoint"].update(every=500)
    config["learning_rate"].update(peak=1e-3, warmup_steps=100)
    # Objects are 15 to 58 pixels large, anchors 24, 48 and 96.
    _objective(config).update(
        neck=dict(kind="simple_feature_pyramid", channels=64, strides=(8, 16, 32)), anchor_scale=3.0
    )
    config["encoders"]["image"].update(
        patch=8, width=128, depth=4, heads=4, image_size=96, layer_scale=1.0, scan=False
    )
    config["streams"]["scenes"].update(batch_size=16)
    return config


def demo_frozen() -> dict:
    """The demo with an encoder that stays as it was initialised."""
    config = demo()
    config.update(name="detection_demo_frozen", lr_multipliers=(("encoders/", 0.0),))
    return config


def tiny() -> dict:
    """A narrow CoSwin with a feature pyramid, on few scenes, in seconds."""
    config = full("coswin_b")
    _small(config, name="detection_tiny", size=64, training=32, testing=8)
    config.update(total_steps=10, log_every=2, eval_every=5)
    config["checkpoint"].update(every=5)
    config["learning_rate"].update(peak=1e-3, warmup_steps=2)
    _objective(config).update(
        neck=dict(kind="fpn", channels=16, strides=(8, 16), map_norm=True), groups=4, anchor_scale=4.0
    )
    config["encoders"]["image"].update(
        width=16, depths=(2, 2, 2), heads=(1, 1, 2), window=4, drop_path=0.0, scan=False
    )
    config["streams"]["scenes"].update(batch_size=8)
    return config


def _small(config, name, size, training, testing):
    """What small presets share: float32, nothing pre-trained, composited scenes of `size` pixels, in so many
    of which they train and are tested, and one block of Dynamic Head."""

    def source(split, scenes):
        return dict(kind="composited_scenes", split=split, size=size, scenes=scenes, classes=_PASTED)

    config.update(
        name=name,
        dtype="float32",
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        lr_multipliers=(),
        ema=0.98,
        evals=dict(composited=dict(kind="detection", data=source("test", testing))),
        learning_rate=dict(kind="cosine", start=0.0, final=1e-5),
    )
    config["checkpoint"].update(keep=2, best="eval/detection/composited/AP50")
    config["optimizer"].update(b2=0.98)
    data = config["streams"]["scenes"]["data"]
    data.update(source=source("train", training), threads=2, cache_mib=0)
    data["fields"]["image"].update(
        crop=dict(kind="random_crop", resize=size, size=size, resize_mode="crop"), flip=True
    )
    data["fields"]["boxes"].update(max_boxes=8, ignore_key="")
    config["eval_transform"].update(size=size, resize=size)
    _objective(config).update(classes=len(_PASTED), blocks=1, max_side=size)
