"""Three methods on one encoder, from two kinds of data: labelled images and captioned images.

    python -m big_ssl.main --config=configs/mixture_demo.py --workdir=runs/mixture_demo

One ViT learns from two streams. `labelled` has images with a class: their crops train a classifier, and DINO,
which reads no label. `captioned` has images with texts, for contrastive learning. It is no paper's recipe: it
shows that a mixture is a list. It trains on the embedded emoji drawings in minutes on two CPU cores, and is
evaluated as a classifier, zero-shot, for retrieval and by nearest neighbours. Preset: `tiny`, seconds, for
tests.

No stream knows of the other: each has its own source, fields, batch size and objectives.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[preset][,key=value ...]`, see big_ssl/recipe.py."""
    return recipe.choose("mixture_demo", arg, {"": full, "tiny": tiny})


def full() -> dict:
    """400 steps of 64 labelled and 64 captioned drawings."""
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return dict(
        name="mixture_demo",
        seed=0,
        total_steps=400,
        dtype="float32",
        streams=dict(labelled=_labelled(pixels), captioned=_captioned(pixels)),
        tokenizer=dict(emoji.TOKENIZER),
        eval_transform=dict(size=48, resize=54, resize_mode="crop", filter="bicubic", **pixels),
        encoders=dict(
            image=dict(
                kind="vit",
                patch=12,
                width=128,
                depth=4,
                heads=4,
                image_size=48,
                epsilon=1e-6,
                pooling="cls",
                kernel_init="dinov2",
                position_resize="dinov2",
                layer_scale=1e-5,
                scan=False,
            ),
            text=dict(
                kind="text_transformer",
                width=128,
                depth=2,
                heads=2,
                causal=True,
                pooling="eot",
                activation="quick_gelu",
                epsilon=1e-5,
                kernel_init="clip",
                eot_id=emoji.SEP_ID,
                scan=False,
            ),
        ),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.98,
            eps=1e-6,
            weight_decay=0.1,
            weight_decay_exclude=("_norm/", "bias$", "_scale$", "_token$"),
            trust_ratio_exclude=(),
            clip_norm=3.0,
            clip_scope="part",
        ),
        learning_rate=dict(kind="cosine", peak=1e-3, warmup_steps=40, start=0.0, final=1e-5),
        lr_multipliers=(),
        # DINO's teacher, and the weights that are evaluated.
        ema=dict(kind="cosine", peak=0.95, warmup_steps=0, start=0.0, final=0.99),
        init_from=dict(path="", exclude=(), remap=()),
        mesh=dict(data=-1, fsdp=1, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        profile=0,
        log_every=20,
        eval_every=200,
        checkpoint=dict(every=100, keep=2, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        predictors=dict(),
        evals=emoji.evals() | _evals(("twemoji", "openmoji"), emoji.TRAINING_STYLES),
    )


def _labelled(pixels):
    """Drawings with one of ten categories: a crop for the classifier, two large and four small for DINO."""
    augmented = dict(kind="image", flip=True, **pixels)
    fields = dict(
        crops=augmented | dict(crop=dict(kind="random_resized_crop", size=48, scale=(0.4, 1.0))),
        global_crops=augmented
        | dict(crop=dict(kind="random_resized_crop", size=48, scale=(0.4, 1.0), count=2)),
        local_crops=augmented
        | dict(crop=dict(kind="random_resized_crop", size=24, scale=(0.1, 0.4), count=4)),
        label=dict(kind="label", key="category"),
    )
    source = dict(kind="emoji", styles=emoji.TRAINING_STYLES, concepts="seen")
    return dict(
        batch_size=64,
        data=dict(source=source, fields=fields, cache_mib=128, threads=2),
        objectives=dict(
            category=dict(
                kind="classification",
                weight=0.5,
                classes=emoji.CATEGORIES,
                view="crops",
                loss="softmax",
                label_smoothing=0.1,
            ),
            dino=dict(
                kind="dino",
                weight=0.5,
                masked=False,
                head=dict(prototypes=4_096, hidden=512, bottleneck=128, layers=3, norm_last_layer=True),
                teacher_temperature=0.04,
                # An EMA center lags behind such a fast teacher.
                centering=dict(kind="sinkhorn", iterations=3),
            ),
        ),
    )


def _captioned(pixels):
    """The drawings' concepts with names of several kinds; two drawings of one concept never share a batch."""
    captions = dict(label=0.7, name=0.1, short_names=0.1, tags=0.1)
    crop = dict(kind="random_crop", resize=54, size=48, resize_mode="crop")
    return dict(
        batch_size=64,
        data=dict(
            source=dict(kind="emoji_concepts", styles=emoji.TRAINING_STYLES, concepts="seen"),
            # Mirrored, a left arrow is a right arrow.
            fields=dict(
                image=dict(kind="image", flip=False, crop=crop, **pixels),
                text=dict(kind="text", captions=captions),
            ),
            cache_mib=128,
            threads=2,
        ),
        objectives=dict(
            itc=dict(
                kind="contrastive",
                weight=0.5,
                embed_dim=128,
                image_projection=True,
                text_projection_bias=False,
                temperature=0.07,
                temperature_form="log",
                logit_bias=placeholder(float),
                label_smoothing=0.0,
            )
        ),
    )


def _evals(styles, training_styles):
    neighbours = emoji.neighbours(styles[:1], training_styles)
    classified = {f"{name}_category": options for name, options in emoji.classified(styles[:1]).items()}
    return {f"{name}_knn": options for name, options in neighbours.items()} | classified


def tiny() -> dict:
    """Seconds, for tests: one style, small batches, thin encoders."""
    config = full()
    config.update(name="mixture_demo_tiny", total_steps=10, log_every=2, eval_every=5)
    config["checkpoint"].update(every=5)
    config["learning_rate"].update(warmup_steps=2)
    for stream in config["streams"].values():
        stream.update(batch_size=16)
        stream["data"].update(source=dict(kind="emoji", styles=("fxemoji",), concepts="seen"))
    fields = config["streams"]["labelled"]["data"]["fields"]
    for name, size in (("crops", 32), ("global_crops", 32), ("local_crops", 16)):
        fields[name]["crop"].update(size=size)
    fields["local_crops"]["crop"].update(count=2)
    config["streams"]["captioned"]["data"]["fields"]["image"]["crop"].update(resize=36, size=32)
    config["eval_transform"].update(size=32, resize=36)
    config["encoders"]["image"].update(patch=8, width=32, depth=1, heads=2, image_size=32)
    config["encoders"]["text"].update(width=32, depth=1)
    config["streams"]["captioned"]["objectives"]["itc"].update(embed_dim=32)
    config["streams"]["labelled"]["objectives"]["dino"]["head"].update(
        prototypes=64, hidden=32, bottleneck=16
    )
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",)) | _evals(("twemoji",), ("fxemoji",))
    return config
