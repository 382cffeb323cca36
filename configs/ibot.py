"""iBOT (Zhou et al. 2022, arXiv 2111.07832): masked image modelling with an online tokenizer, on ImageNet-1k.

    python -m big_ssl.main --config=configs/ibot.py:vits16 --workdir=gs://bucket/ibot \
        --config.streams.images.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/ibot.py:demo --workdir=runs/ibot_demo

Models: `vits16` (the default), `vitb16` and `vitl16`. Presets: `demo` trains a small model on the embedded
emoji drawings without their names, in minutes on two CPU cores; `tiny` is the demo in seconds, for tests;
`rehearsal` is for launch/rehearse.sh. With the weight of one objective at 0 the other remains: DINO, or
masked image modelling alone. The demo has DINOv2's KoLeo too, and its Sinkhorn in place of a moving center.

Values are from the paper and the README of the published code; for B and L also from what others report of
their argument files, which are no longer public. What differs from the published code, and why:
- Exactly half of a group's crops are masked, with ratios evenly spaced over [0.1, 0.5]; the code draws both
  for each crop. So the number of masked patches is static.
- The weight decay is a schedule (a cosine), and temperatures rise at each step and not at each epoch.
"""

from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

# peak: the learning rate for 256 images a step. scale: the smallest area of a global crop. rise, frozen: the
# epochs in which the teacher's temperature rises, and in which the prototypes are frozen.
_LARGE = dict(peak=7.5e-4, final=2e-6, scale=0.32, norm_last_layer=True, rise=50, frozen=3, clip_norm=0.3)
MODELS: dict[str, dict[str, Any]] = {
    "vits16": dict(
        encoder=dict(patch=16, width=384, depth=12, heads=6),
        epochs=800,
        peak=5e-4,
        final=1e-6,
        scale=0.25,
        norm_last_layer=False,
        rise=30,
        frozen=1,
        clip_norm=3.0,
    ),
    "vitb16": dict(encoder=dict(patch=16, width=768, depth=12, heads=12), epochs=400, **_LARGE),
    "vitl16": dict(encoder=dict(patch=16, width=1024, depth=24, heads=16), epochs=250, **_LARGE),
}
_BATCH = 1_024
_EPOCH = recipe.epochs(1, 1_281_167, _BATCH)


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda model: shrink(full(model))}
    return recipe.choose("ibot", arg, presets, MODELS)


def full(model: str) -> dict:
    """1,024 images a step, with two global and ten local crops of each."""
    published = MODELS[model]
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return dict(
        name=f"ibot_{model}",
        seed=0,
        total_steps=published["epochs"] * _EPOCH,
        dtype="bfloat16",
        streams=dict(
            images=dict(
                batch_size=_BATCH, data=_data(published["scale"], pixels), objectives=_objectives(published)
            )
        ),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **pixels),
        encoders=dict(image=_encoder(published["encoder"])),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=dict(kind="cosine", peak=0.04, warmup_steps=0, start=0.0, final=0.4),
            # All that is one-dimensional in the published code, where tokens and lengths are not.
            weight_decay_exclude=("_norm/", "bias$"),
            trust_ratio_exclude=(),
            clip_norm=published["clip_norm"],
            clip_scope="parameter",
        ),
        learning_rate=dict(
            kind="cosine",
            peak=recipe.scaled_rate(published["peak"], _BATCH),
            warmup_steps=10 * _EPOCH,
            start=0.0,
            final=published["final"],
        ),
        lr_multipliers=(
            ("/prototype", dict(kind="steps", values=((0, 0.0), (published["frozen"] * _EPOCH, 1.0)))),
        ),
        ema=dict(kind="cosine", peak=0.996, warmup_steps=0, start=0.0, final=1.0),
        init_from=dict(path="", exclude=(), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=1, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",
        requires=dict(weights=False, preset_here="demo"),
        profile=0,
        log_every=100,
        eval_every=25 * _EPOCH,
        checkpoint=dict(every=2 * _EPOCH, keep=3, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(),
        predictors=dict(),
    )


def _encoder(size):
    return dict(
        kind="vit",
        **size,
        image_size=224,
        epsilon=1e-6,
        pooling="cls",
        kernel_init="dino",
        mask_token=True,
        position_resize="dinov2",
        drop_path=0.1,
        scan=True,
    )


def _data(scale, pixels):
    colour = dict(**pixels, flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grayscale_prob=0.2)
    return dict(
        source=dict(
            kind="tfds",
            name="imagenet2012",
            split="train",
            data_dir="",
            image_key="image",
            text_keys=(),
        ),
        fields=dict(
            global_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=224, scale=(scale, 1.0), count=2),
                **colour,
                blur_prob=(1.0, 0.1),
                solarize_prob=(0.0, 0.2),
                mask=dict(grid=14, mask_prob=0.5, ratio=(0.1, 0.5), min_patches=16, mask_group=16),
            ),
            local_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=96, scale=(0.05, scale), count=10),
                **colour,
                blur_prob=(0.5,) * 10,
                solarize_prob=(),
            ),
        ),
        cache_mib=0,
        threads=64,
    )


def _objectives(published):
    temperature = dict(
        kind="linear", start=0.04, peak=0.07, warmup_steps=published["rise"] * _EPOCH, final=0.07
    )
    return dict(
        dino=dict(
            kind="dino",
            weight=1.0,
            head=dict(
                prototypes=8_192,
                hidden=2_048,
                bottleneck=256,
                layers=3,
                norm_last_layer=published["norm_last_layer"],
            ),
            teacher_temperature=dict(temperature),
            centering=dict(kind="center", momentum=0.9),
        ),
        ibot=dict(
            kind="ibot",
            weight=1.0,
            head="dino",  # one head for both, as in all published runs
            teacher_temperature=dict(temperature),
            centering=dict(kind="center", momentum=0.9),
            center_over="all",
        ),
    )


def demo(model: str) -> dict:
    """A small model on 6,803 emoji drawings of 1,541 concepts, without their names."""
    config = full(model)
    config.update(name=f"ibot_{model}_demo", **emoji.images_run())
    config["learning_rate"].update(peak=2e-3, warmup_steps=40, final=1e-5)
    config["optimizer"].update(b2=0.98, clip_norm=3.0)
    images = config["streams"]["images"]
    images.update(
        batch_size=128,
        data=emoji.images(images["data"]["fields"], size=48, local_size=24, local_count=4),
    )
    fields = images["data"]["fields"]
    config["eval_transform"].update(size=48, resize=48)
    # DINOv2's Sinkhorn: an EMA center lags behind such a fast teacher, and after 50 steps few
    # prototypes are in use. DINOv2's KoLeo: without it drawings crowd together.
    changes = dict(teacher_temperature=0.04, centering=dict(kind="sinkhorn", iterations=3))
    head = dict(prototypes=4_096, hidden=512, bottleneck=128, layers=3, norm_last_layer=True)
    images["objectives"]["dino"].update(changes, head=head)
    images["objectives"]["ibot"].update(changes)
    images["objectives"]["koleo"] = dict(kind="koleo", weight=0.1, koleo_group=0)
    fields["global_crops"]["mask"].update(grid=4, min_patches=2)
    # Blur would erase such small crops, and colour is half of the information in a drawing.
    for name in ("global_crops", "local_crops"):
        fields[name].update(jitter=(), grayscale_prob=0.0, blur_prob=(), solarize_prob=())
    config["encoders"]["image"].update(
        patch=12, width=128, depth=4, heads=4, image_size=48, drop_path=0.0, scan=False
    )
    return config


def tiny(model: str) -> dict:
    """Seconds, for tests: the recipe's two objectives and its EMA center, on drawings of one style."""
    config = demo(model)
    config.update(name=f"ibot_{model}_tiny", **emoji.few_images_run())
    config["learning_rate"].update(warmup_steps=2)
    images = config["streams"]["images"]
    images.update(
        batch_size=16,
        data=emoji.few_images(images["data"]["fields"], size=32, local_size=16, local_count=2),
    )
    config["eval_transform"].update(size=32, resize=32)
    images["objectives"]["dino"]["head"].update(prototypes=64, hidden=32, bottleneck=16)
    for name in ("dino", "ibot"):
        images["objectives"][name].update(centering=dict(kind="center", momentum=0.9))
    del images["objectives"]["koleo"]
    config["encoders"]["image"].update(patch=8, width=32, depth=1, heads=2, image_size=32)
    return config
