"""UniCL (Yang et al. 2022, arXiv 2204.03610): Swin and a text encoder on image-text and image-label data.

    python -m big_ssl.main --config=configs/unicl.py:swinb --workdir=gs://bucket/unicl
    python -m big_ssl.main --config=configs/unicl.py:demo --workdir=runs/unicl_demo

A batch mixes captioned images with images of a class, whose name, in a random prompt, is the text. Images of
one class are positives of each other and of each other's texts; a captioned image is the positive of its own
caption only.

Models: `swint` and `swinb` with the largest mixture of data that was released for each, IN-21K + YFCC-14M and
these + GCC-15M; the other 12 released mixtures by name, such as `swint_in1k_gcc3m` and `swinb_in21k`, see
MIXTURES. Presets: `demo` trains a small model of the same kind on the embedded emoji drawings, in minutes on
two CPU cores; `tiny` is the demo in seconds, for tests; `rehearsal` is for launch/rehearse.sh.

The paper publishes the loss, and microsoft/UniCL the models (configs/*.yaml), defaults of training
(config.py), the prompts and the preprocessing; its training loop does not run. `# open` marks a value that
these leave open, and names the source of ours. Nobody has trained these recipes at full size.
"""

import math
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

# configs/unicl_swin_tiny.yaml and unicl_swin_base.yaml.
_T: dict[str, Any] = dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), drop_path=0.2)
_B: dict[str, Any] = dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.5)

# Millions of images. A mixture draws each with equal probability. IN-21K is IN-22K without the classes of
# IN-1K. open: the images of YFCC-14M, here CLIP's part of YFCC-100M, and of each half, here the first.
_MILLIONS = dict(in1k=1.28, in21k=12.92, in22k=14.2, gcc3m=3.3, gcc15m=15.7, yfcc14m=14.8)
# The names of the files of release v1.0, and the model of each.
MIXTURES: dict[str, dict[str, Any]] = {
    "swint": dict(image=_T, sets=("in21k", "yfcc14m")),
    "swinb": dict(image=_B, sets=("in21k", "yfcc14m", "gcc15m")),
    "swint_in1k": dict(image=_T, sets=("in1k",)),
    "swint_in1k_gcc3m": dict(image=_T, sets=("in1k", "gcc3m")),
    "swint_in1k_yfcc14m": dict(image=_T, sets=("in1k", "yfcc14m")),
    "swint_in1k_gcc15m": dict(image=_T, sets=("in1k", "gcc15m")),
    "swint_yfcc14m": dict(image=_T, sets=("yfcc14m",)),
    "swint_in21k": dict(image=_T, sets=("in21k",)),
    "swint_in22k": dict(image=_T, sets=("in22k",)),
    "swint_in21k_yfcc14m_half": dict(image=_T, sets=("in21k", "yfcc14m"), half=True),
    "swinb_yfcc14m": dict(image=_B, sets=("yfcc14m",)),
    "swinb_in21k": dict(image=_B, sets=("in21k",)),
    "swinb_in21k_yfcc14m_half": dict(image=_B, sets=("in21k", "yfcc14m"), half=True),
    "swinb_in21k_yfcc14m": dict(image=_B, sets=("in21k", "yfcc14m")),
}
_BATCH = 4_096  # open: 128 a GPU, and no number of GPUs


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda model: shrink(full(model))}
    return recipe.choose("unicl", arg, presets, MIXTURES)


def full(model: str) -> dict:
    """32 epochs of a mixture."""
    published = MIXTURES[model]
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    millions = sum(_MILLIONS[name] for name in published["sets"]) / (2 if published.get("half") else 1)
    epoch = int(millions * 1e6) // _BATCH
    peak = recipe.scaled_rate(5e-4, _BATCH, per=512)
    return dict(
        name=f"unicl_{model}",
        seed=0,
        total_steps=32 * epoch,
        dtype="bfloat16",
        streams=dict(pairs=_pairs(published, pixels)),
        tokenizer=dict(kind="clip_bpe", vocabulary="clip", size=49_408, length=77),
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **pixels),
        encoders=dict(
            image=dict(kind="swin", **published["image"], window=7, scan=True),
            text=dict(
                kind="text_transformer",
                width=512,
                heads=8,
                depth=12,
                causal=True,
                pooling="eot",
                activation="quick_gelu",
                epsilon=1e-12,
                kernel_init="unicl",
                eot_id=placeholder(int),  # None: the vocabulary's last word
                scan=True,
            ),
        ),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.1,
            # Swin's too: vectors and the tables of positions.
            weight_decay_exclude=(
                "norm/",
                "bias$",
                "position_bias/table$",
                "position_embedding$",
                "logit_scale$",
            ),
            trust_ratio_exclude=(),
            clip_norm=5.0,
            clip_scope="all",
        ),
        # The rule of its code: 5e-4, from 5e-7 to 5e-6, at a batch of 512.
        learning_rate=dict(
            kind="cosine", peak=peak, warmup_steps=5 * epoch, start=peak / 1000, final=peak / 100
        ),
        lr_multipliers=(),
        ema=0.0,
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
        eval_every=10_000,
        checkpoint=dict(every=2_000, keep=3, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(),
        predictors=dict(),
    )


def _pairs(published, pixels):
    return dict(
        batch_size=_BATCH,
        data=dict(
            sources=tuple(_source(name, published.get("half", False)) for name in published["sets"]),
            fields=dict(
                image=dict(
                    kind="image",
                    # Published: 224 pixels, bicubic, ImageNet's mean and deviation; no mixup and no CutMix on
                    # IN-1K (README). open: crop and flip, here CLIP's, a random square of the resized image
                    # and none. Its code defaults to those of Swin's classifier, a random resized crop, flips,
                    # RandAugment, erasing, mixup and CutMix, for ImageNet alone.
                    crop=dict(kind="random_crop", resize=224, size=224, resize_mode="crop"),
                    **pixels,
                    flip=False,
                ),
                # All names of classes have prompts, and no captions, as by data/language of its code.
                text=dict(
                    kind="text",
                    captions=dict(text=1.0),
                    prompts="unicl",
                    prompt_words=0,
                    prompt_classes="all",
                ),
                identity=dict(kind="identity", class_by="number", caption_by="pair"),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=dict(unicl=_objective(embed_dim=512)),
    )


def _objective(embed_dim):
    """Equations 1 to 4, with the means of Algorithm 1."""
    return dict(
        kind="contrastive",
        weight=0.5,  # the mean of both directions
        embed_dim=embed_dim,
        image_projection=True,
        text_projection_bias=False,
        temperature=math.exp(-1),  # its logarithmic scale starts at 1, not at CLIP's log(1 / 0.07)
        temperature_form="log",
        temperature_clamp=False,
        positives="identity",
        projection_std=0.02,
        logit_bias=placeholder(float),
        label_smoothing=0.0,
    )


def _source(name, half):
    """A dataset in TFDS's format, in the default folder.

    TFDS's classes of IN-1K are WordNet ids, named as UniCL does; those of your IN-21K and IN-22K must be
    names, or label_set a file of them.
    """
    labelled, key = name.startswith("in"), "label" if name.startswith("in") else "text"
    label_set = "imagenet_unicl" if name == "in1k" else ""
    return dict(
        source=dict(
            kind="tfds",
            name="imagenet2012" if name == "in1k" else name,
            split="train[:50%]" if half else "train",
            data_dir="",
            image_key="image",
            text_keys=(key,),
        ),
        weight=_MILLIONS[name],
        fields=dict(text=dict(captions={}, class_key=key, label_set=label_set)) if labelled else {},
    )


def demo(model: str) -> dict:
    """A small model on 6,803 emoji drawings: half of a batch has captions, half one of 99 classes' names."""
    config = full(model)
    config.update(name=f"unicl_{model}_demo", **emoji.pairs_run())
    config["tokenizer"].update(length=24)  # of a prompt
    config["learning_rate"].update(peak=1e-3, warmup_steps=100, start=0.0, final=0.0)
    config["optimizer"].update(b2=0.98)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=160, data=emoji.mixture(pairs["data"]["fields"], resize=54, size=48))
    config["eval_transform"].update(size=48, resize=54)
    pairs["objectives"]["unicl"].update(embed_dim=128, projection_std=placeholder(float))
    # Maps of 12 x 12, 6 x 6 and 3 x 3 positions.
    config["encoders"]["image"].update(
        width=48, depths=(2, 2, 2), heads=(2, 4, 8), window=3, drop_path=0.0, scan=False
    )
    # CLIP's initial weights, with which docs/results.md was measured.
    config["encoders"]["text"].update(
        width=128, depth=2, heads=2, kernel_init="clip", eot_id=emoji.SEP_ID, scan=False
    )
    return config


def tiny(model: str) -> dict:
    """The demo with narrower encoders and small batches, in seconds."""
    config = demo(model)
    config.update(name=f"unicl_{model}_tiny", total_steps=20, log_every=5, eval_every=10)
    config["checkpoint"].update(every=10)
    config["learning_rate"].update(warmup_steps=5)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=16, data=emoji.few_mixture(pairs["data"]["fields"], resize=36, size=32))
    config["eval_transform"].update(size=32, resize=36)
    pairs["objectives"]["unicl"].update(embed_dim=32)
    config["encoders"]["image"].update(width=16, depths=(2, 2), heads=(1, 2), window=4)
    config["encoders"]["text"].update(width=32, depth=1)
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    return config
