"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): DINO, iBOT's masked patches and KoLeo, at the scale of ViT-g.

    python -m big_ssl.main --config=configs/dinov2.py:vitg14 --workdir=gs://bucket/dinov2 \
        --config.streams.images.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/dinov2.py:vitl16_short --workdir=...
    python -m big_ssl.main --config=configs/dinov2.py:demo --workdir=runs/dinov2_demo

Models: `vitg14` (the default), `vitl14`, and `vitl16_short`, the short run of the published code. Presets:
`highres` trains the last 10,000 steps at 518 pixels, from a checkpoint (--config.init_from.path);
`as_released` blurs as the published code does (0 and 0.9 of the global crops, where the paper has 1.0 and
0.1); `demo` trains a small model on the embedded emoji drawings without their names, in minutes on two CPU
cores; `tiny` is the demo in seconds, for tests; `rehearsal` is for launch/rehearse.sh.

Values are from the published configuration files. What differs from the published code, and why:
- The number of masked patches is static: exactly half of a group's crops are masked, with ratios evenly
  spaced over [0.1, 0.5].
- KoLeo searches the nearest neighbours among as many examples as a device of the published run had, on any
  number of devices: in a larger group neighbours are nearer, which is another loss.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

# peak: the learning rate for 1,024 images a step. per_device: the published run's batch on a device.
_LONG: dict[str, Any] = dict(
    dataset="imagenet21k",  # open: LVD-142M is not public; the released files name ImageNet-22k
    batch_size=3_072,
    steps=625_000,
    warmup=100_000,
    peak=2e-4,
    ema=0.994,
    final_decay=0.2,
    layer_decay=1.0,
    drop_path=0.4,
    prototypes=131_072,
    dino_bottleneck=384,
    two_heads=True,
    centering=dict(kind="sinkhorn", iterations=3),
    local_size=98,
)
MODELS: dict[str, dict[str, Any]] = {
    # Few images on a device leave memory for what the other models compute again: remat="dots".
    "vitg14": dict(
        encoder=dict(patch=14, width=1536, depth=40, heads=24, feed_forward="swiglu"),
        per_device=12,
        remat="dots",
        **_LONG,
    ),
    # With SwiGLU, unlike the published L, which is distilled (configs/dinov2_distill.py).
    "vitl14": dict(
        encoder=dict(patch=14, width=1024, depth=24, heads=16, feed_forward="swiglu"),
        per_device=32,
        remat="full",
        **_LONG,
    ),
    "vitl16_short": dict(
        encoder=dict(patch=16, width=1024, depth=24, heads=16, feed_forward="mlp"),
        per_device=64,
        remat="full",
        dataset="imagenet2012",
        batch_size=2_048,
        steps=125_000,
        warmup=12_500,
        peak=4e-3,
        ema=0.992,
        final_decay=0.4,
        layer_decay=0.9,
        drop_path=0.3,
        prototypes=65_536,
        dino_bottleneck=256,
        two_heads=False,
        centering=dict(kind="center", momentum=0.9),
        local_size=96,
    ),
}
_EPOCH = 1_250  # steps, as the published files count them


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets = {"": full, "as_released": as_released, "highres": highres, "demo": demo, "tiny": tiny}
    presets["rehearsal"] = lambda model: shrink(full(model))
    return recipe.choose("dinov2", arg, presets, MODELS)


def full(model: str) -> dict:
    """Two global and eight local crops of each image."""
    published = MODELS[model]
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batch_size = published["batch_size"]
    return dict(
        name=f"dinov2_{model}",
        seed=0,
        total_steps=published["steps"],
        dtype="bfloat16",
        streams=dict(
            images=dict(
                batch_size=batch_size, data=_data(published, pixels), objectives=_objectives(published)
            )
        ),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **pixels),
        encoders=dict(image=_encoder(published)),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=dict(
                kind="cosine", peak=0.04, warmup_steps=0, start=0.0, final=published["final_decay"]
            ),
            # Tokens, position tables and the lengths of prototypes are decayed, as published.
            weight_decay_exclude=("_norm/", "bias$", "_scale$"),
            trust_ratio_exclude=(),
            clip_norm=3.0,
            clip_scope="part",
        ),
        learning_rate=dict(
            kind="cosine",
            peak=recipe.scaled_rate(published["peak"], batch_size, per=1_024, rule="sqrt"),
            warmup_steps=published["warmup"],
            start=0.0,
            final=1e-6,
        ),
        lr_multipliers=(
            ("/prototype", dict(kind="steps", values=((0, 0.0), (_EPOCH, 1.0)))),
            ("encoders/", dict(kind="layer_decay", decay=published["layer_decay"], patch_embedding=0.2)),
        ),
        ema=dict(kind="cosine", peak=published["ema"], warmup_steps=0, start=0.0, final=1.0),
        init_from=dict(path="", exclude=(), remap=()),
        # The options below do not change what is computed. Eight shards suffice for the state of ViT-g, and
        # keep its exchanges short (docs/performance.md); on fewer devices nothing is sharded.
        mesh=dict(data=-1, fsdp=8, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat=published["remat"],
        requires=dict(weights=False, preset_here="demo"),
        profile=0,
        log_every=100,
        eval_every=12_500,
        checkpoint=dict(every=2_500, keep=3, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(),
        predictors=dict(),
    )


def _encoder(published):
    return dict(
        kind="vit",
        **published["encoder"],
        image_size=224,
        epsilon=1e-6,
        pooling="cls",
        kernel_init="dinov2",
        mask_token=True,
        position_resize="dinov2",
        layer_scale=1e-5,
        drop_path=published["drop_path"],
        drop_path_mode="subset",
        drop_path_groups=published["batch_size"] // published["per_device"],
        registers=0,
        rope_base=placeholder(float),
        rope_rescale=1.0,
        scan=True,
    )


def _data(published, pixels):
    patch = published["encoder"]["patch"]
    mask_group = min(16, published["per_device"])
    colour = dict(**pixels, flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grayscale_prob=0.2)
    return dict(
        source=dict(
            kind="tfds",
            name=published["dataset"],
            split="train",
            data_dir="",
            image_key="image",
            text_keys=(),
        ),
        fields=dict(
            global_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=224, scale=(0.32, 1.0), count=2),
                **colour,
                blur_prob=(1.0, 0.1),
                solarize_prob=(0.0, 0.2),
                mask=dict(
                    grid=224 // patch, mask_prob=0.5, ratio=(0.1, 0.5), min_patches=4, mask_group=mask_group
                ),
            ),
            local_crops=dict(
                kind="image",
                crop=dict(
                    kind="random_resized_crop", size=published["local_size"], scale=(0.05, 0.32), count=8
                ),
                **colour,
                blur_prob=(0.5,) * 8,
                solarize_prob=(),
            ),
        ),
        cache_mib=0,
        threads=64,
    )


def _objectives(published):
    """chunk: how many crops' or patches' logits are in memory at a time; results do not depend on it."""
    head = dict(
        prototypes=published["prototypes"], hidden=2_048, bottleneck=256, layers=3, norm_last_layer=False
    )
    temperature = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=30 * _EPOCH, final=0.07)
    return dict(
        dino=dict(
            kind="dino",
            weight=1.0,
            head=dict(head, bottleneck=published["dino_bottleneck"]),
            teacher_temperature=dict(temperature),
            centering=dict(published["centering"]),
            chunk=2,
        ),
        ibot=dict(
            kind="ibot",
            weight=1.0,
            head=head if published["two_heads"] else "dino",
            teacher_temperature=dict(temperature),
            centering=dict(published["centering"]),
            center_over="masked",
            chunk=128,
        ),
        koleo=dict(kind="koleo", weight=0.1, koleo_group=published["per_device"], crops=2),
    )


def as_released(model: str) -> dict:
    """With the blur of the published code, which takes the complement of the paper's probabilities."""
    config = full(model)
    config["streams"]["images"]["data"]["fields"]["global_crops"].update(blur_prob=(0.0, 0.9))
    return config


def highres(model: str) -> dict:
    """The last phase, at 518 pixels (592 for patches of 16): the schedules in 10,000 steps (appendix B.2)."""
    config = full(model)
    steps, total = 10_000, config["total_steps"]
    side = 37 * config["encoders"]["image"]["patch"]
    config.update(
        name=f"{config['name']}_highres",
        total_steps=steps,
        remat="full",
        eval_every=2_500,
        lr_multipliers=config["lr_multipliers"][1:],  # the prototypes are not frozen again
    )
    config["requires"].update(weights=True)
    rate = config["learning_rate"]
    # open: the paper's learning rate is "lower"; ours is a tenth.
    rate.update(peak=rate["peak"] / 10, warmup_steps=rate["warmup_steps"] * steps // total)
    images = config["streams"]["images"]
    global_crops = images["data"]["fields"]["global_crops"]
    global_crops["crop"].update(size=side)
    global_crops["mask"].update(grid=37)
    config["eval_transform"].update(size=side, resize=side)
    for name in ("dino", "ibot"):
        schedule = images["objectives"][name]["teacher_temperature"]
        schedule["warmup_steps"] = schedule["warmup_steps"] * steps // total
    config["encoders"]["image"].update(image_size=side)
    return config


def demo(model: str) -> dict:
    """A small model on 6,803 emoji drawings of 1,541 concepts, without their names."""
    config = full(model)
    config.update(name=f"dinov2_{model}_demo", **emoji.images_run())
    config["learning_rate"].update(peak=1e-3, warmup_steps=40, final=1e-5)
    config["optimizer"].update(b2=0.98)
    images = config["streams"]["images"]
    images.update(
        batch_size=128,
        data=emoji.images(images["data"]["fields"], size=48, local_size=24, local_count=4),
    )
    fields = images["data"]["fields"]
    config["eval_transform"].update(size=48, resize=48)
    for name in ("dino", "ibot"):
        objective = images["objectives"][name]
        # Sinkhorn for all models: an EMA center lags behind such a fast teacher.
        objective.update(teacher_temperature=0.04, centering=dict(kind="sinkhorn", iterations=3))
        if objective["head"] != "dino":
            objective["head"].update(prototypes=4_096, hidden=512, bottleneck=128, norm_last_layer=True)
    images["objectives"]["koleo"].update(koleo_group=0)
    fields["global_crops"]["mask"].update(grid=4, min_patches=2, mask_group=16)
    # Blur would erase such small crops, and colour is half of the information in a drawing.
    for name in ("global_crops", "local_crops"):
        fields[name].update(jitter=(), grayscale_prob=0.0, blur_prob=(), solarize_prob=())
    config["encoders"]["image"].update(
        patch=12, width=128, depth=4, heads=4, image_size=48, drop_path=0.0, drop_path_groups=1, scan=False
    )
    # With 1e-5 the network starts as almost a constant, and so does the teacher of so short a run: 38.5%
    # instead of 51.1% by nearest neighbours (docs/results.md).
    config["encoders"]["image"].update(layer_scale=0.1)
    return config


def tiny(model: str) -> dict:
    """Seconds, for tests, with the centering and the layer scale of the recipe."""
    config, published = demo(model), full(model)
    config.update(name=f"dinov2_{model}_tiny", **emoji.few_images_run())
    config["learning_rate"].update(peak=2e-3, warmup_steps=2)
    images = config["streams"]["images"]
    images.update(
        batch_size=16,
        data=emoji.few_images(images["data"]["fields"], size=32, local_size=16, local_count=2),
    )
    config["eval_transform"].update(size=32, resize=32)
    for name in ("dino", "ibot"):
        objective = images["objectives"][name]
        objective.update(centering=published["streams"]["images"]["objectives"][name]["centering"])
        if objective["head"] != "dino":
            objective["head"].update(prototypes=64, hidden=32, bottleneck=16)
    config["encoders"]["image"].update(patch=8, width=32, depth=1, heads=2, image_size=32, layer_scale=1e-5)
    return config
