"""ALIGN fine-tuned for retrieval on COCO and Flickr30K (Jia et al. 2021, arXiv 2102.05918, section 5.1).

    python -m big_ssl.main --config=configs/finetune_align_retrieval.py:base --workdir=runs/align_coco \
        --config.init_from.path=align_base --config.tokenizer.vocabulary=align_base/vocab.txt \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets

Models: `l2` (the default), of configs/align_l2.py; `base`, of configs/align_base.py, whose weights
`python -m big_ssl.convert --from=hf_align` makes. Presets: without one it is COCO; `flickr30k`; `tiny` takes
seconds, for tests; `rehearsal` is for launch/rehearse.sh. All start from weights (--config.init_from.path).

Values are the paper's: those of pre-training, but a batch of 2,048, so that few captions are false negatives
of each other, and a learning rate that falls from 1e-5 to 0. `# open` marks what the paper leaves open, and
names the source of our value; COYO is kakaobrain/coyo-align.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

MODELS: dict[str, dict[str, Any]] = {
    "l2": dict(
        image=dict(width=4.3, depth=5.3),
        text=dict(width=1024, depth=24, heads=16),
        vocabulary=100_000,
        embed_dim=1376,
        fsdp=16,
    ),
    "base": dict(
        image=dict(width=2.0, depth=3.1, padding="fixed"),
        text=dict(width=768, depth=12, heads=12),
        vocabulary=30_522,
        embed_dim=640,
        fsdp=1,
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {"": coco, "flickr30k": flickr30k, "tiny": tiny}
    presets["rehearsal"] = lambda model: shrink(coco(model))
    return recipe.choose("finetune_align_retrieval", arg, presets, MODELS)


def coco(model: str) -> dict:
    """The captions of COCO, as TensorFlow Datasets' catalogue has them."""
    sizes = MODELS[model]
    return dict(
        name=f"align_{model}_coco",
        seed=0,
        total_steps=6_000,
        dtype="bfloat16",
        streams=dict(pairs=_pairs(sizes["embed_dim"])),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=sizes["vocabulary"], length=64),
        eval_transform=dict(
            size=289, resize=346, resize_mode="stretch", filter="bicubic", mean=(0.5,), std=(0.5,)
        ),
        encoders=dict(
            image=dict(
                kind="efficientnet",
                **sizes["image"],
                strides=(1, 2, 2, 2, 1, 2, 1),
                drop_connect=0.2,  # open: EfficientNet's default
                bn_group=16,  # open: a TPU v3 core's 16 examples in pre-training
                bn_momentum=0.99,  # open: EfficientNet's default
                scan=True,
            ),
            text=dict(kind="bert", **sizes["text"], dropout=0.1, scan=True),
        ),
        optimizer=dict(
            name="lamb",
            b1=0.9,  # open: LAMB's defaults
            b2=0.999,
            eps=1e-6,
            weight_decay=1e-5,
            weight_decay_exclude=("_bn/",),  # open: as in COYO
            trust_ratio_exclude=("_bn/",),
            clip_norm=0.0,
            clip_scope="all",
        ),
        # The paper states an initial rate; the warm-up of pre-training is longer than all of this.
        learning_rate=dict(kind="linear", peak=1e-5, warmup_steps=0, start=0.0, final=0.0),
        lr_multipliers=(),
        ema=0.0,
        init_from=dict(path="", exclude=(), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=sizes["fsdp"], tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",
        requires=dict(weights=True, preset_here="tiny"),
        profile=0,
        log_every=100,
        eval_every=1_000,
        checkpoint=dict(every=500, keep=3, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(),
        predictors=dict(),
    )


def _pairs(embed_dim):
    return dict(
        batch_size=2_048,
        data=dict(
            source=dict(
                kind="tfds",
                name="coco_captions",
                split="train",
                data_dir="",
                image_key="image",
                text_keys=("captions/text",),
            ),
            # Resized to 346 x 346 without regard to the aspect ratio, as TensorFlow resizes.
            fields=dict(
                image=dict(
                    kind="image",
                    crop=dict(kind="random_crop", resize=346, size=289, resize_mode="stretch"),
                    mean=(0.5,),  # open: as COYO scales
                    std=(0.5,),
                    flip=True,
                ),
                text=dict(kind="text", captions={"captions/text": 1.0}),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=dict(
            contrastive=dict(
                kind="contrastive",
                weight=1.0,
                embed_dim=embed_dim,  # the width of the pooled image; there is no image projection
                image_projection=False,
                text_projection_bias=True,
                temperature=1.0,
                temperature_form="raw",
                label_smoothing=0.1,
            )
        ),
    )


def flickr30k(model: str) -> dict:
    """Flickr30K, which you prepare for TensorFlow Datasets as COCO is: an image's captions in one list."""
    config = coco(model)
    config.update(name=f"align_{model}_flickr30k", total_steps=3_000)
    config["streams"]["pairs"]["data"]["source"].update(name="flickr30k")
    return config


def tiny() -> dict:
    """Seconds, for tests: continues the model of configs/align_l2.py:tiny."""
    config = coco("l2")
    config.update(emoji.pairs_run(), name="align_retrieval_tiny", total_steps=4, log_every=2, eval_every=4)
    config["mesh"].update(fsdp=1)
    config["requires"].update(weights=True)
    config["checkpoint"].update(every=4)
    config["learning_rate"].update(kind="cosine")
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=16, data=emoji.few_pairs(pairs["data"]["fields"], resize=18, size=16))
    config["eval_transform"].update(size=16, resize=18, resize_mode="crop")
    pairs["objectives"]["contrastive"].update(
        embed_dim=80, text_projection_bias=False, temperature=0.07, temperature_form="log"
    )
    pairs["data"]["fields"]["image"]["flip"] = False
    config["encoders"]["image"].update(
        width=0.25, depth=0.3, drop_connect=0.0, bn_group=0, bn_momentum=0.9, scan=False
    )
    config["encoders"]["text"].update(width=32, depth=1, heads=1, dropout=0.0, scan=False)
    config["optimizer"].update(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        weight_decay_exclude=("_bn/", "_norm/", "bias$", "temperature$", "logit_scale$"),
    )
    return config
