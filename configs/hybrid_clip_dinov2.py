"""One ViT by CLIP's objective on captions and DINOv2's three on crops of the same pictures.

    python -m big_ssl.main --config=configs/hybrid_clip_dinov2.py --workdir=gs://bucket/hybrid \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/hybrid_clip_dinov2.py:demo --workdir=runs/hybrid_demo

Nothing here is a method of its own: the objectives are listed with their weights, and one step trains them
(SILC, Naeem et al. 2023, arXiv 2310.13355, adds DINO's term to CLIP's; TIPS, Maninis et al. 2024, arXiv
2410.16512, DINO's and iBOT's). It is no published recipe: the towers, the batch and the texts are those of
CLIP's ViT-B/16, crops and heads those of DINOv2's short run. From SILC are the sizes of crops, and an
average that never stops: a teacher that no longer moves learns no more from the texts.

Presets: `contrastive` and `self_supervised`, one half each, for comparison; `demo`, `tiny`; the halves of
the demo are `demo_contrastive` and `demo_self_supervised`.
"""

import functools

from ml_collections import ConfigDict

from big_ssl import recipe
from big_ssl.evals import suite
from big_ssl.models import vit
from configs import clip, dinov2, emoji
from configs.rehearsal import rehearsal

_SELF_SUPERVISED = ("dino", "ibot", "koleo")


def full() -> dict:
    """CLIP's ViT-B/16 with DINOv2's block, and four terms."""
    config, crops = clip.full("vitb16"), dinov2.full("vitl16_short")
    config.update(
        name="hybrid_clip_dinov2",
        masks=crops["masks"],
        views=crops["views"],
        rates=crops["rates"][:1],
        ema=dict(kind="linear", peak=0.996, warmup_steps=0, start=0.996, final=0.996),
    )
    config["encoders"]["image"] = dict(
        kind="vit", **vit.VARIANTS["B/16"], **vit.DINOV2, image_size=224, drop_path=0.1, scan=True
    )
    config["encoders"]["image"].update(drop_path_groups=512)
    config["optimizer"].update(clip_norm=3.0, clip_per="part")
    config["optimizer"].update(decay_exclude=("_norm/", "bias$", "_scale$", "logit_scale$"))
    pairs = config["streams"]["pairs"]
    pairs["data"]["views"].update(
        global_crops=dict(kind="random_resized_crop", size=224, scale=(0.4, 1.0), count=2),
        local_crops=dict(kind="random_resized_crop", size=96, scale=(0.05, 0.4), count=8),
    )
    pairs["objectives"].update(crops["streams"]["images"]["objectives"])
    return config


def demo() -> dict:
    """All four on 6,803 emoji drawings of 1,541 concepts and their names, at the size of DINOv2's demo."""
    return _scaled(clip.demo("vitb16"), dinov2.demo("vitl16_short"), emoji.pairs, emoji.evals())


def tiny() -> dict:
    """The demo's code path in seconds."""
    evals = emoji.evals(("twemoji",), ("fxemoji",))
    return _scaled(clip.tiny("vitb16"), dinov2.tiny("vitl16_short"), emoji.few_pairs, evals)


def _scaled(texts, crops, pairs_of, evals):
    """The texts of one of CLIP's presets, and pictures, tower and steps of one of DINOv2's."""
    config = full()
    same = ("total_steps", "dtype", "remat", "requires", "mesh", "learning_rate", "log_every", "eval_every")
    same += ("checkpoint", "masks", "views", "rates", "ema")
    config |= {key: crops[key] for key in same}
    config.update(name=crops["name"].replace("dinov2_vitl16_short", "hybrid"), tokenizer=texts["tokenizer"])
    config["optimizer"].update(b2=crops["optimizer"]["b2"])
    config["encoders"].update(image=crops["encoders"]["image"], text=texts["encoders"]["text"])
    pairs, images = config["streams"]["pairs"], crops["streams"]["images"]
    side = images["data"]["views"]["image"]["crop"]
    data = pairs_of(resize=side + side // 8, crop=side)
    views = images["data"]["views"] | data["views"]
    pairs.update(batch_size=images["batch_size"], data=data | dict(views=views))
    dim = texts["streams"]["pairs"]["objectives"]["contrastive"]["dim"]
    pairs["objectives"].update(images["objectives"])
    pairs["objectives"]["contrastive"].update(dim=dim)
    config["evals"] = evals | crops["evals"]
    return config


def contrastive(make) -> dict:
    """The half of CLIP: the other terms, their passes, masks and crops are not there."""
    config = make()
    objectives = config["streams"]["pairs"]["objectives"]
    for name in _SELF_SUPERVISED:
        del objectives[name]
    config.update(name=f"{config['name']}_contrastive", masks={}, rates=())
    return config


def self_supervised(make) -> dict:
    """The half of DINOv2, without the texts and what is asked about them."""
    config = make()
    config.update(name=f"{config['name']}_self_supervised")
    del config["streams"]["pairs"]["objectives"]["contrastive"], config["encoders"]["text"]
    config["evals"] = {
        name: options for name, options in config["evals"].items() if options["kind"] not in suite.OF_TEXTS
    }
    return config


def get_config(arg: str = "") -> ConfigDict:
    """The recipe, one of its presets, or changes to it."""
    sizes = {"": full, "demo": demo, "tiny": tiny}
    presets = dict(sizes, rehearsal=lambda: rehearsal(full()))
    for name, half in (("contrastive", contrastive), ("self_supervised", self_supervised)):
        presets |= {
            f"{size}_{name}".lstrip("_"): functools.partial(half, make) for size, make in sizes.items()
        }
    return recipe.choose("hybrid_clip_dinov2", arg, presets)
