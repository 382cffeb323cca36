"""ALIGN (Jia et al. 2021, arXiv 2102.05918): EfficientNet and BERT on noisy alt-text, one recipe.

    python -m big_ssl.main --config=configs/align_l2.py --workdir=gs://bucket/align \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/align_base.py --workdir=...
    python -m big_ssl.main --config=configs/align_l2.py:demo --workdir=runs/align_demo

The files align_*.py choose a model; what they share is here. Presets: `demo`, the same architecture
scaled down, on the embedded emoji drawings, minutes on two CPU cores; `tiny`, the demo in seconds, for
tests; of the paper's own model also `multilingual`, whose vocabulary comes from the texts of its data set:

    python -m big_ssl.train_tokenizer --config=configs/align_l2.py:multilingual --kind=sentencepiece_bert \
        --vocab_size=250000 --output=spiece.model --config.streams.pairs.data.source.data_dir=...

and goes into config.tokenizer.vocabulary. What the paper leaves open is marked.
"""

import functools
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import rehearsal

MODELS: dict[str, dict[str, Any]] = {
    # The paper's own, section 4: 1024 TPU v3 cores.
    "l2": dict(
        total_steps=1_200_000,
        batch_size=16_384,
        rate=dict(peak=1e-3, warmup_steps=10_000),
        vocab_size=100_000,
        dim=1376,
        image=dict(width=4.3, depth=5.3),
        text=dict(width=1024, depth=24, heads=16),
        fsdp=16,
        demo="align",
    ),
    # COYO's reproduction (kakaobrain/coyo-align, conf/coyo700m.flags and conf/b7-base.flags), whose weights
    # are public: BERT's uncased vocabulary, and Keras's padding where a map is odd.
    "base": dict(
        total_steps=300_000,
        batch_size=65_536,
        rate=dict(peak=2e-3, warmup_steps=40_000),
        vocab_size=30_522,
        dim=640,
        image=dict(width=2.0, depth=3.1, padding="fixed"),
        text=dict(width=768, depth=12, heads=12),
        fsdp=1,
        demo="align_base",
    ),
}


def get_config(model: str, arg: str) -> ConfigDict:
    """One model's recipe, one of its presets, or changes to it; see big_ssl/recipe.py."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda model: rehearsal(full(model))}
    if model == "l2":
        presets["multilingual"] = multilingual
    built = {name: functools.partial(preset, model) for name, preset in presets.items()}
    return recipe.choose(f"align_{model}", arg, built)


def full(model: str) -> dict:
    """Section 4 of the paper, or COYO's reproduction of it."""
    chosen = MODELS[model]
    return dict(
        name=f"align_{model}",
        seed=0,
        total_steps=chosen["total_steps"],
        dtype="bfloat16",
        grad_accum=1,
        remat="full",  # open in the paper, as is scan below: neither changes what is computed
        mesh=dict(data=-1, fsdp=chosen["fsdp"], tensor=1),
        mesh_rules=(),
        sharding=(),
        requires=dict(weights=False, preset_here="demo"),
        init_from=dict(path="", skip=(), copy=()),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=chosen["vocab_size"], length=64),
        streams=dict(
            pairs=dict(
                batch_size=chosen["batch_size"],
                data=dict(
                    source=dict(
                        kind="tfds",
                        name="image_text_pairs",
                        split="train",
                        data_dir="",
                        image_key="image",
                        text_keys=("text",),
                    ),
                    # To 346 x 346 whatever the aspect, as TensorFlow resizes.
                    views=dict(image=dict(kind="window", resize=346, crop=289, fit="squash")),
                    captions=dict(text=1.0),
                    cache_mib=0,
                    threads=64,
                ),
                objectives=dict(
                    contrastive=dict(
                        kind="contrastive",
                        weight=1.0,
                        dim=chosen["dim"],  # the image tower's pooled width; it has no projection
                        image_projection=False,
                        text_bias=True,
                        temperature=1.0,
                        temperature_form="raw",
                        label_smoothing=0.1,
                    )
                ),
            )
        ),
        # Scaling to [-1, 1] is not in the paper; COYO's reproduction does it.
        views=dict(image=dict(mean=(0.5,), std=(0.5,), flip=True)),
        masks=dict(),
        encoders=_encoders(chosen),
        optimizer=dict(
            name="lamb",
            b1=0.9,  # betas and epsilon are open in the paper: LAMB's own
            b2=0.999,
            eps=1e-6,
            weight_decay=1e-5,
            # Open in the paper; as in COYO's reproduction, batch norm is neither decayed nor adapted.
            decay_exclude=("_bn/",),
            adapt_exclude=("_bn/",),
            clip_norm=0.0,
            clip_per="all",
        ),
        learning_rate=dict(kind="linear", **chosen["rate"], start=0.0, final=0.0),
        rates=(),
        ema=0.0,
        profile=0,
        log_every=100,
        eval_every=10_000,
        checkpoint=dict(every=2_000, keep=3, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(),
    )


def _encoders(chosen):
    return dict(
        image=dict(
            kind="efficientnet",
            **chosen["image"],
            strides=(1, 2, 2, 2, 1, 2, 1),
            drop_connect=0.2,  # open in the paper; EfficientNet's own default
            group_size=16,  # open in the paper; its TPUs normalised over a core's 16 examples
            bn_momentum=0.99,
            scan=True,
        ),
        text=dict(kind="bert", **chosen["text"], dropout=0.1, scan=True),
    )


def multilingual(model: str) -> dict:
    """The paper's multilingual model: 250,000 wordpieces, and all else as it was."""
    config = full(model)
    config["name"] += "_multilingual"
    # Which wordpieces is open. BERT's uncased ones drop the vowel signs of Hindi and Thai; these keep them.
    config["tokenizer"].update(kind="sentencepiece_bert", size=250_000)
    return config


def demo(model: str) -> dict:
    """ALIGN on 6,803 emoji drawings of 1,541 concepts, in minutes on a laptop's CPU."""
    config = full(model)
    config.update(
        name=f"{MODELS[model]['demo']}_demo",
        **emoji.pairs_run(),
        mesh=dict(data=-1, fsdp=1, tensor=1),
        learning_rate=dict(kind="cosine", peak=3e-3, warmup_steps=100, start=0.0, final=0.0),
    )
    pairs = config["streams"]["pairs"]
    pairs["batch_size"] = 128
    pairs["data"] = emoji.pairs(resize=36, crop=32)
    # By its logarithm: learnt as it is, it first triples at this rate, and the start takes longer.
    pairs["objectives"]["contrastive"].update(
        dim=240, text_bias=False, temperature=0.07, temperature_form="log"
    )
    # Mirrored, a left arrow is a right arrow.
    config["views"]["image"]["flip"] = False
    config["encoders"]["image"].update(width=0.75, depth=1.0, drop_connect=0.0, group_size=0, bn_momentum=0.9)
    config["encoders"]["text"].update(width=128, depth=2, heads=2, dropout=0.0)
    # A loop saves compiling many layers; few are quicker without.
    config["encoders"]["image"]["scan"] = config["encoders"]["text"]["scan"] = False
    config["optimizer"].update(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        decay_exclude=("_bn/", "_norm/", "bias$", "temperature$", "logit_scale$"),
    )
    return config


def tiny(model: str) -> dict:
    """The demo's code path in seconds: a thin image tower, one text layer, small batches."""
    config = demo(model)
    config.update(name=f"{MODELS[model]['demo']}_tiny", total_steps=20, log_every=5, eval_every=10)
    config["checkpoint"].update(every=10)
    config["learning_rate"].update(peak=2e-3, warmup_steps=5)
    pairs = config["streams"]["pairs"]
    # Fixed zeros leave nothing of 16 pixels.
    side = 32 if "padding" in config["encoders"]["image"] else 16
    pairs.update(batch_size=16, data=emoji.few_pairs(resize=side + side // 8, crop=side))
    pairs["objectives"]["contrastive"].update(dim=80, temperature_form="log")
    config["encoders"]["image"].update(width=0.25, depth=0.3)
    config["encoders"]["text"].update(width=32, depth=1, heads=1)
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    return config
