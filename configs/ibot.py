"""iBOT (Zhou et al. 2022, arXiv 2111.07832): masked image modelling with an online tokenizer.

    python -m big_ssl.main --config=configs/ibot_vits16.py --workdir=gs://bucket/ibot \
        --config.streams.images.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/ibot_vits16.py:demo --workdir=runs/ibot_demo

The files ibot_*.py choose a model; what they share is here. Presets: `demo`, the same method scaled
down, on the embedded emoji drawings without their names, minutes on two CPU cores; `tiny`, seconds,
for tests. Either objective's weight set to 0 leaves the other method: DINO, or masked modelling alone. The
demo has DINOv2's KoLeo besides, and its Sinkhorn in the place of the moving centre.

What differs from the published code, and why: exactly half of a group's crops are masked, with ratios
spread evenly over [0.1, 0.5], where the code draws both for each crop: it makes the number of masked
patches static. The weight decay's cosine from 0.04 to 0.4 is a schedule, temperatures rise with each
step and not each epoch.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from big_ssl.models import vit
from configs import emoji
from configs.rehearsal import rehearsal

# README of the published code, and for B and L what others report of its argument files, which are not
# public any more: epochs, rate for 256 pictures a step, the crops' smallest area, learnt prototype lengths,
# epochs of the temperatures' rise and of the frozen prototypes, clipping.
_LARGE = dict(rate=7.5e-4, final=2e-6, scale=0.32, lengths=False, rise=50, frozen=3, clip=0.3)
MODELS: dict[str, dict[str, Any]] = {
    "vits16": dict(
        variant="S/16",
        epochs=800,
        rate=5e-4,
        final=1e-6,
        scale=0.25,
        lengths=True,
        rise=30,
        frozen=1,
        clip=3.0,
    ),
    "vitb16": dict(variant="B/16", epochs=400, **_LARGE),
    "vitl16": dict(variant="L/16", epochs=250, **_LARGE),
}
_BATCH = 1_024
_EPOCH = recipe.epochs(1, 1_281_167, _BATCH)
_IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_COLOUR = dict(**_IMAGENET, flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_chance=0.8, grey_chance=0.2)


def full(model: str) -> dict:
    """ImageNet-1k, 1,024 pictures a step, two global and ten local crops of each."""
    chosen = MODELS[model]
    steps = chosen["epochs"] * _EPOCH
    return dict(
        name=f"ibot_{model}",
        seed=0,
        total_steps=steps,
        dtype="bfloat16",
        grad_accum=1,
        remat="full",  # neither this nor scan changes what is computed
        mesh=dict(data=-1, fsdp=1, tensor=1),
        mesh_rules=(),
        sharding=(),
        requires=dict(weights=False, preset_here="demo"),
        init_from=dict(path="", skip=(), copy=()),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        streams=dict(
            images=dict(batch_size=_BATCH, data=_data(chosen["scale"]), objectives=_objectives(chosen))
        ),
        views=dict(
            global_crops=dict(**_COLOUR, blur_chance=(1.0, 0.1), solarise_chance=(0.0, 0.2)),
            local_crops=dict(**_COLOUR, blur_chance=(0.5,) * 10, solarise_chance=()),
            image=dict(_IMAGENET),
        ),
        masks=dict(global_crops=dict(grid=14, share=0.5, ratio=(0.1, 0.5), min_patches=16, group_size=16)),
        encoders=dict(image=_tower(chosen["variant"])),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=dict(kind="cosine", peak=0.04, warmup_steps=0, start=0.0, final=0.4),
            # All that is one-dimensional in the published code, where tokens and lengths are not.
            decay_exclude=("_norm/", "bias$"),
            adapt_exclude=(),
            clip_norm=chosen["clip"],
            clip_per="parameter",
        ),
        learning_rate=dict(
            kind="cosine",
            peak=recipe.scaled_rate(chosen["rate"], _BATCH),
            warmup_steps=10 * _EPOCH,
            start=0.0,
            final=chosen["final"],
        ),
        rates=(("/prototype", dict(kind="steps", values=((0, 0.0), (chosen["frozen"] * _EPOCH, 1.0)))),),
        ema=dict(kind="cosine", peak=0.996, warmup_steps=0, start=0.0, final=1.0),
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
    )


def _data(scale):
    return dict(
        source=dict(
            kind="tfds", name="imagenet2012", split="train", data_dir="", image_key="image", text_keys=()
        ),
        views=dict(
            global_crops=dict(kind="random_resized_crop", size=224, scale=(scale, 1.0), count=2),
            local_crops=dict(kind="random_resized_crop", size=96, scale=(0.05, scale), count=10),
            image=dict(kind="window", resize=256, crop=224, fit="crop"),  # for evaluation
        ),
        captions={},
        cache_mib=0,
        threads=64,
    )


def _objectives(chosen):
    """One head for both terms, as in all published runs."""
    rise = chosen["rise"] * _EPOCH
    head = dict(prototypes=8_192, hidden=2_048, bottleneck=256, layers=3, learn_lengths=chosen["lengths"])
    temperature = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=rise, final=0.07)
    return dict(
        dino=dict(
            kind="dino",
            weight=1.0,
            head=head,
            teacher_temperature=dict(temperature),
            centring=dict(kind="centre", momentum=0.9),
        ),
        ibot=dict(
            kind="ibot",
            weight=1.0,
            head="dino",
            teacher_temperature=dict(temperature),
            centring=dict(kind="centre", momentum=0.9),
            centre_over="all",
        ),
    )


def _tower(variant):
    return dict(kind="vit", **vit.VARIANTS[variant], **vit.DINO, image_size=224, drop_path=0.1, scan=True)


def demo(model: str) -> dict:
    """iBOT on 6,803 emoji drawings of 1,541 concepts, without their names."""
    config = full(model)
    config.update(
        name=f"ibot_{model}_demo",
        total_steps=400,
        dtype="float32",
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        # In so few steps a slower teacher would still be the random network that it began as.
        ema=dict(kind="cosine", peak=0.95, warmup_steps=0, start=0.0, final=0.99),
        log_every=20,
        eval_every=200,
        checkpoint=dict(every=100, keep=2, best=""),
        evals=emoji.neighbours() | emoji.heads(),
        rates=(),
    )
    config["learning_rate"].update(peak=2e-3, warmup_steps=40, final=1e-5)
    config["optimizer"].update(b2=0.98, clip_norm=3.0)
    images = config["streams"]["images"]
    images.update(batch_size=128, data=emoji.pictures(size=48, local_size=24, local_count=4))
    # Sinkhorn and KoLeo are not iBOT's but DINOv2's. A moving centre comes too late for a teacher as quick as
    # this one: few prototypes are left after 50 steps. Without KoLeo drawings crowd together.
    own = dict(teacher_temperature=0.04, centring=dict(kind="sinkhorn", iterations=3))
    head = dict(prototypes=4_096, hidden=512, bottleneck=128, layers=3, learn_lengths=False)
    images["objectives"]["dino"].update(own, head=head)
    images["objectives"]["ibot"].update(own)
    images["objectives"]["koleo"] = dict(kind="koleo", weight=0.1, group_size=0)
    config["masks"]["global_crops"].update(grid=4, min_patches=2)
    # Of so small crops a blur leaves nothing, and of drawings colour is half of what there is to know.
    for view in ("global_crops", "local_crops"):
        config["views"][view].update(jitter=(), grey_chance=0.0, blur_chance=(), solarise_chance=())
    config["encoders"]["image"].update(
        patch=12, width=128, depth=4, heads=4, image_size=48, drop_path=0.0, scan=False
    )
    return config


def tiny(model: str) -> dict:
    """Seconds, for tests: the recipe's two objectives and its moving centre, on drawings of one style."""
    config = demo(model)
    config.update(name=f"ibot_{model}_tiny", total_steps=10, log_every=2, eval_every=5)
    config["checkpoint"].update(every=5)
    config["learning_rate"].update(warmup_steps=2)
    images = config["streams"]["images"]
    images.update(batch_size=16, data=emoji.few_pictures(size=32, local_size=16, local_count=2))
    images["objectives"]["dino"]["head"].update(prototypes=64, hidden=32, bottleneck=16)
    for term in ("dino", "ibot"):
        images["objectives"][term].update(centring=dict(kind="centre", momentum=0.9))
    del images["objectives"]["koleo"]
    config["encoders"]["image"].update(patch=8, width=32, depth=1, heads=2, image_size=32)
    config["evals"] = emoji.neighbours(("fxemoji",), ("fxemoji",))
    return config


def get_config(model: str, arg: str) -> ConfigDict:
    """One model's recipe; arg: a preset, KEY=VALUE changes, or both (big_ssl/recipe.py)."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda model: rehearsal(full(model))}
    built = {name: functools.partial(make, model) for name, make in presets.items()}
    return recipe.choose(f"ibot_{model}", arg, built)
