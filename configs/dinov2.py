"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): DINO, iBOT's patches and KoLeo, at the scale of ViT-g.

    python -m big_ssl.main --config=configs/dinov2_vitg14.py --workdir=gs://bucket/dinov2 \
        --config.streams.images.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/dinov2_vitl16_short.py:demo --workdir=runs/dinov2_demo

The files dinov2_*.py choose a run; what they share is here. Presets: `as_released`, the blur that the
published code gives its crops (0 and 0.9 of the global ones where the paper has 1.0 and 0.1, of which it
takes the complement); `highres`, 10,000 steps at 518 pixels from a checkpoint, --config.init_from.path;
`demo` and `tiny`, as in configs/ibot.py.

What differs from the published code, and why: masks as in configs/ibot.py, with the number of masked
patches static; KoLeo's nearest neighbours are looked for among as many examples as a device of the
published run had, on whatever devices (a larger group has nearer neighbours, and another loss).
"""

import functools
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from big_ssl.models import vit
from configs import ibot
from configs.rehearsal import rehearsal

# The released configuration files: rate for 1,024 pictures a step; per_device is their batch of a device; in
# thousands of steps the run, the warm-up of the rate; end of the average's and the decay's schedules.
_LONG: dict[str, Any] = dict(
    dataset="imagenet21k",
    batch_size=3_072,
    steps=625_000,
    warmup=100_000,
    rate=2e-4,
    ema=0.994,
    final_decay=0.2,
    layer_decay=1.0,
    drop_path=0.4,
    prototypes=131_072,
    token_bottleneck=384,
    separate=True,
    centring=dict(kind="sinkhorn", iterations=3),
    local_size=98,
)
MODELS: dict[str, dict[str, Any]] = {
    "vitl16_short": dict(
        variant="L/16",
        feed_forward="mlp",
        dataset="imagenet2012",
        batch_size=2_048,
        per_device=64,
        steps=125_000,
        warmup=12_500,
        rate=4e-3,
        ema=0.992,
        final_decay=0.4,
        layer_decay=0.9,
        drop_path=0.3,
        prototypes=65_536,
        token_bottleneck=256,
        separate=False,
        centring=dict(kind="centre", momentum=0.9),
        local_size=96,
    ),
    # Its feed-forward layers are SwiGLU's, other than those of the published, distilled L.
    "vitl14": dict(variant="L/14", feed_forward="swiglu", per_device=32, **_LONG),
    # So few pictures on a device leave room for what the others compute again.
    "vitg14": dict(variant="g/14", feed_forward="swiglu", per_device=12, remat="dots", **_LONG),
}
_EPOCH = 1_250
# Scores of so many of a group's patches exist at a time, and of so many of an example's ten crops.
_CHUNK, _TOKEN_CHUNK = 128, 2


def full(model: str) -> dict:
    """Two global and eight local crops of each picture; the published values."""
    chosen = MODELS[model]
    config = ibot.full("vitl16")
    tower: dict[str, Any] = {**vit.VARIANTS[chosen["variant"]], "feed_forward": chosen["feed_forward"]}
    config.update(
        name=f"dinov2_{model}",
        total_steps=chosen["steps"],
        remat=chosen.get("remat", "full"),
        # Eight ways are enough for ViT-g's state, and keep its exchanges short (docs/performance.md). On
        # fewer devices nothing is split, unless mesh.fsdp says so.
        mesh=dict(data=-1, fsdp=8, tensor=1),
        ema=dict(kind="cosine", peak=chosen["ema"], warmup_steps=0, start=0.0, final=1.0),
        eval_every=12_500,
        checkpoint=dict(every=2_500, keep=3, best=""),
        rates=(
            ("/prototype", dict(kind="steps", values=((0, 0.0), (_EPOCH, 1.0)))),
            ("encoders/", dict(kind="layer_decay", decay=chosen["layer_decay"], patch_embedding=0.2)),
        ),
    )
    peak = recipe.scaled_rate(chosen["rate"], chosen["batch_size"], per=1_024, rule="sqrt")
    config["learning_rate"].update(peak=peak, warmup_steps=chosen["warmup"], final=1e-6)
    config["optimizer"].update(
        clip_norm=3.0,
        clip_per="part",
        # Tokens, tables and prototypes' lengths are decayed, as published.
        decay_exclude=("_norm/", "bias$", "_scale$"),
        weight_decay=dict(config["optimizer"]["weight_decay"], final=chosen["final_decay"]),
    )
    images = config["streams"]["images"]
    images.update(batch_size=chosen["batch_size"], objectives=_objectives(chosen))
    images["data"]["source"]["name"] = chosen["dataset"]
    images["data"]["views"].update(
        global_crops=dict(kind="random_resized_crop", size=224, scale=(0.32, 1.0), count=2),
        local_crops=dict(kind="random_resized_crop", size=chosen["local_size"], scale=(0.05, 0.32), count=8),
    )
    config["views"]["local_crops"].update(blur_chance=(0.5,) * 8)
    config["masks"]["global_crops"].update(
        grid=224 // tower["patch"], min_patches=4, group_size=min(16, chosen["per_device"])
    )
    config["encoders"]["image"] = dict(
        kind="vit",
        **tower,
        **vit.DINOV2,
        image_size=224,
        drop_path=chosen["drop_path"],
        drop_path_groups=chosen["batch_size"] // chosen["per_device"],
        registers=0,
        rope_base=placeholder(float),
        rope_rescale=1.0,
        scan=True,
    )
    return config


def _objectives(chosen):
    head = dict(prototypes=chosen["prototypes"], hidden=2_048, bottleneck=256, layers=3, learn_lengths=True)
    rise = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=30 * _EPOCH, final=0.07)

    def term(kind, **own):
        return dict(
            kind=kind, weight=1.0, teacher_temperature=dict(rise), centring=dict(chosen["centring"]), **own
        )

    return dict(
        dino=term("dino", head=dict(head, bottleneck=chosen["token_bottleneck"]), chunk=_TOKEN_CHUNK),
        ibot=term("ibot", head=head if chosen["separate"] else "dino", centre_over="masked", chunk=_CHUNK),
        koleo=dict(kind="koleo", weight=0.1, group_size=chosen["per_device"], crops=2),
    )


def as_released(model: str) -> dict:
    """With the blur of the published code."""
    config = full(model)
    config["views"]["global_crops"].update(blur_chance=(0.0, 0.9))
    return config


def highres(model: str) -> dict:
    """The last phase at 518 pixels (592 for patches of 16), from the weights of a run or a conversion:
    the same schedules in 10,000 steps (appendix B.2). The paper says of its rate that it is lower, and not
    how much: a tenth here."""
    config = full(model)
    steps, total = 10_000, config["total_steps"]
    patch = config["encoders"]["image"]["patch"]
    side = 37 * patch
    config.update(
        name=f"{config['name']}_highres",
        total_steps=steps,
        remat="full",
        requires=dict(config["requires"], weights=True),
        eval_every=2_500,
        rates=tuple(rule for rule in config["rates"] if rule[0] != "/prototype"),
    )
    rate = config["learning_rate"]
    rate.update(peak=rate["peak"] / 10, warmup_steps=rate["warmup_steps"] * steps // total)
    images = config["streams"]["images"]
    images["data"]["views"]["global_crops"].update(size=side)
    images["data"]["views"]["image"].update(resize=side, crop=side)
    for term in ("dino", "ibot"):
        schedule = images["objectives"][term]["teacher_temperature"]
        schedule["warmup_steps"] = schedule["warmup_steps"] * steps // total
    config["masks"]["global_crops"].update(grid=37)
    config["encoders"]["image"].update(image_size=side)
    return config


def demo(model: str) -> dict:
    """DINOv2 on 6,803 emoji drawings of 1,541 concepts, without their names: iBOT's demo, with this recipe's
    objectives and tower."""
    small = ibot.demo("vits16")
    config = _scaled(model, small, prototypes=4_096, hidden=512, bottleneck=128)
    for term in ("dino", "ibot"):  # with a moving centre a run of minutes fails (configs/ibot.py)
        centring = small["streams"]["images"]["objectives"][term]["centring"]
        config["streams"]["images"]["objectives"][term].update(centring=centring)
    # At 1e-5 a network begins as almost a constant, and so does the teacher of a run of minutes: 38.5% for
    # 51.1% by the nearest drawings (docs/results.md).
    config["encoders"]["image"].update(layer_scale=0.1)
    config["learning_rate"].update(peak=1e-3)
    return config


def tiny(model: str) -> dict:
    """This recipe's code path in seconds."""
    return _scaled(model, ibot.tiny("vits16"), prototypes=64, hidden=32, bottleneck=16)


def _scaled(model, small, **head):
    """This recipe with the size, the data and the schedules of one of iBOT's presets."""
    config = full(model)
    same = ("total_steps", "dtype", "remat", "requires", "mesh", "learning_rate", "ema", "log_every")
    same += ("eval_every", "checkpoint", "evals", "masks", "views")
    config |= {key: small[key] for key in same}
    config.update(name=small["name"].replace("ibot_vits16", f"dinov2_{model}"), rates=())
    config["optimizer"].update(b2=small["optimizer"]["b2"])
    images, tower = config["streams"]["images"], small["encoders"]["image"]
    images.update(
        batch_size=small["streams"]["images"]["batch_size"], data=small["streams"]["images"]["data"]
    )
    for term in ("dino", "ibot"):
        own = images["objectives"][term]
        own.update(teacher_temperature=small["streams"]["images"]["objectives"][term]["teacher_temperature"])
        if isinstance(own["head"], dict):
            own["head"].update(head, learn_lengths=False)
    images["objectives"]["koleo"].update(group_size=0)
    sizes = ("patch", "width", "depth", "heads", "image_size", "drop_path", "scan")
    config["encoders"]["image"].update({key: tower[key] for key in sizes}, drop_path_groups=1)
    return config


def get_config(model: str, arg: str) -> ConfigDict:
    """One run's recipe; arg: a preset, KEY=VALUE changes, or both (big_ssl/recipe.py)."""
    presets = {"": full, "as_released": as_released, "highres": highres, "demo": demo, "tiny": tiny}
    presets["rehearsal"] = lambda model: rehearsal(full(model))
    built = {name: functools.partial(make, model) for name, make in presets.items()}
    return recipe.choose(f"dinov2_{model}", arg, built)
