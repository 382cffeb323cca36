"""ALIGN (Jia et al. 2021, arXiv 2102.05918): EfficientNet-L2 and BERT-Large on 1.8B noisy alt-text pairs.

    python -m big_ssl.main --config=configs/align_l2.py --workdir=gs://bucket/align \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/align_l2.py:demo --workdir=runs/align_demo

Presets: `demo` trains a small model on the embedded emoji drawings, in minutes on two CPU cores; `tiny` is
the demo in seconds, for tests; `rehearsal` is for launch/rehearse.sh; `multilingual` has a vocabulary of
250,000 wordpieces, which is trained on the texts of its data set:

    python -m big_ssl.train_tokenizer --config=configs/align_l2.py:multilingual --kind=sentencepiece_bert \
        --vocab_size=250000 --output=spiece.model --config.streams.pairs.data.source.data_dir=...

and given to the training with --config.tokenizer.vocabulary=spiece.model.

Values are from section 4 of the paper. `# open` marks a value that the paper leaves open, and names the
source of ours; COYO is kakaobrain/coyo-align (configs/align_base.py).
"""

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda: shrink(full())}
    presets["multilingual"] = multilingual
    return recipe.choose("align_l2", arg, presets)


def full() -> dict:
    """The paper's own model, which was trained on 1024 TPU v3 cores."""
    return dict(
        name="align_l2",
        seed=0,
        total_steps=1_200_000,
        dtype="bfloat16",
        streams=dict(pairs=_pairs()),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=100_000, length=64),
        eval_transform=dict(
            size=289, resize=346, resize_mode="stretch", filter="bicubic", mean=(0.5,), std=(0.5,)
        ),
        encoders=dict(
            image=dict(
                kind="efficientnet",
                width=4.3,
                depth=5.3,
                strides=(1, 2, 2, 2, 1, 2, 1),
                drop_connect=0.2,  # open: EfficientNet's default
                bn_group=16,  # open: a TPU v3 core's 16 examples
                bn_momentum=0.99,  # open: EfficientNet's default
                scan=True,
            ),
            text=dict(kind="bert", width=1024, depth=24, heads=16, dropout=0.1, scan=True),
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
        learning_rate=dict(kind="linear", peak=1e-3, warmup_steps=10_000, start=0.0, final=0.0),
        lr_multipliers=(),
        ema=0.0,
        init_from=dict(path="", exclude=(), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=16, tensor=1),
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


def _pairs():
    return dict(
        batch_size=16_384,
        data=dict(
            source=dict(
                kind="tfds",
                name="image_text_pairs",
                split="train",
                data_dir="",
                image_key="image",
                text_keys=("text",),
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
                text=dict(kind="text", captions=dict(text=1.0)),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=dict(
            contrastive=dict(
                kind="contrastive",
                weight=1.0,
                embed_dim=1376,  # the width of the pooled image; there is no image projection
                image_projection=False,
                text_projection_bias=True,
                temperature=1.0,
                temperature_form="raw",
                label_smoothing=0.1,
            )
        ),
    )


def multilingual() -> dict:
    """The paper's multilingual model: the same with a vocabulary of 250,000 wordpieces."""
    config = full()
    config["name"] += "_multilingual"
    # open: the kind of wordpieces. BERT's uncased ones drop the vowel signs of Hindi and Thai.
    config["tokenizer"].update(kind="sentencepiece_bert", size=250_000)
    return config


def demo() -> dict:
    """6,803 emoji drawings of 1,541 concepts with their names, in minutes on a laptop's CPU."""
    config = full()
    config.update(
        name="align_demo",
        **emoji.pairs_run(),
        mesh=dict(data=-1, fsdp=1, tensor=1),
        learning_rate=dict(kind="cosine", peak=3e-3, warmup_steps=100, start=0.0, final=0.0),
    )
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=128, data=emoji.pairs(pairs["data"]["fields"], resize=36, size=32))
    config["eval_transform"].update(size=32, resize=36, resize_mode="crop")
    # The logarithm of the temperature is learned: at this learning rate the temperature itself would first
    # triple, and training would start more slowly.
    pairs["objectives"]["contrastive"].update(
        embed_dim=240, text_projection_bias=False, temperature=0.07, temperature_form="log"
    )
    pairs["data"]["fields"]["image"]["flip"] = False  # a flipped left arrow is a right arrow
    # Layers are not scanned: a scan saves the compilation of many layers, and few run faster without it.
    config["encoders"]["image"].update(
        width=0.75, depth=1.0, drop_connect=0.0, bn_group=0, bn_momentum=0.9, scan=False
    )
    config["encoders"]["text"].update(width=128, depth=2, heads=2, dropout=0.0, scan=False)
    config["optimizer"].update(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        weight_decay_exclude=("_bn/", "_norm/", "bias$", "temperature$", "logit_scale$"),
    )
    return config


def tiny() -> dict:
    """The demo with narrower encoders and small batches, in seconds."""
    config = demo()
    config.update(name="align_tiny", total_steps=20, log_every=5, eval_every=10)
    config["checkpoint"].update(every=10)
    config["learning_rate"].update(peak=2e-3, warmup_steps=5)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=16, data=emoji.few_pairs(pairs["data"]["fields"], resize=18, size=16))
    config["eval_transform"].update(size=16, resize=18)
    pairs["objectives"]["contrastive"].update(embed_dim=80)
    config["encoders"]["image"].update(width=0.25, depth=0.3)
    config["encoders"]["text"].update(width=32, depth=1, heads=1)
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    return config
