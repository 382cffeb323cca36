"""SigLIP (Zhai et al. 2023, arXiv 2303.15343): image-text pairs under a sigmoid loss, ViT-B/16 from scratch.

    python -m big_ssl.train_tokenizer --config=configs/siglip.py --kind=sentencepiece --vocab_size=32000 \
        --output=spiece.model --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/siglip.py --workdir=gs://bucket/siglip \
        --config.tokenizer.vocabulary=spiece.model \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/siglip.py:demo --workdir=runs/siglip_demo

The model is the released siglip-base-patch16-224, of 203,155,970 parameters. Presets: `demo` trains a small
model on the embedded emoji drawings, in minutes on two CPU cores; `tiny` is the demo in seconds, for tests;
`rehearsal` is for launch/rehearse.sh.

Values are the paper's. "SigLIP 2" marks a value of arXiv 2502.14786, section 2.1, by the same group; `# open`
one that the paper leaves open, with the source of ours.
"""

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda: shrink(full())}
    return recipe.choose("siglip", arg, presets)


def full() -> dict:
    """40 billion pairs, 32,768 a step."""
    return dict(
        name="siglip",
        seed=0,
        total_steps=1_220_703,
        dtype="bfloat16",
        streams=dict(pairs=_pairs()),
        # The paper's runs read 16 tokens; the released models read 64, padding included.
        tokenizer=dict(kind="sentencepiece", vocabulary="", size=32_000, length=64),
        eval_transform=dict(
            size=224, resize=224, resize_mode="stretch", filter="bicubic", mean=(0.5,), std=(0.5,)
        ),
        encoders=_encoders(),
        optimizer=dict(
            name="adamw",  # SigLIP 2; the paper's Adafactor is Adam with a factored second moment
            b1=0.9,  # open: Adam's default
            b2=0.95,
            eps=1e-8,  # open: Adam's default
            # SigLIP 2's 1e-4 is big_vision's, which does not multiply it by the rate of 1e-3: here it is 0.1.
            weight_decay=0.1,
            # big_vision decays kernels alone.
            weight_decay_exclude=("_norm/", "bias$", "embedding$", "probe$", "logit_scale$"),
            trust_ratio_exclude=(),
            clip_norm=1.0,  # SigLIP 2
            clip_scope="all",
        ),
        # SigLIP 2: the peak, the warm-up and the cosine.
        learning_rate=dict(kind="cosine", peak=1e-3, warmup_steps=20_000, start=0.0, final=0.0),
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


def _encoders():
    return dict(
        image=dict(
            kind="vit",
            patch=16,
            width=768,
            depth=12,
            heads=12,
            image_size=224,
            class_token=False,
            pooling="map",
            activation="gelu_tanh",
            epsilon=1e-6,
            kernel_init="glorot",
            patch_dropout=0.0,
            scan=True,
        ),
        text=dict(
            kind="text_transformer",
            width=768,
            depth=12,
            heads=12,
            causal=False,
            pooling="last",
            activation="gelu_tanh",
            epsilon=1e-6,
            kernel_init="glorot",
            scan=True,
        ),
    )


def _pairs():
    return dict(
        batch_size=32_768,
        data=dict(
            source=dict(
                kind="tfds",
                name="image_text_pairs",
                split="train",
                data_dir="",
                image_key="image",
                text_keys=("text",),
            ),
            # Resized to 224 x 224 without regard to the aspect ratio, as the released models are
            # evaluated. open: augmentation; there is none here.
            fields=dict(
                image=dict(
                    kind="image",
                    crop=dict(kind="random_crop", resize=224, size=224, resize_mode="stretch"),
                    mean=(0.5,),  # open: to [-1, 1], as in big_vision
                    std=(0.5,),
                    flip=False,
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
                embed_dim=768,  # the pooled image is the embedding
                image_projection=False,
                text_projection_bias=True,
                temperature=0.1,  # t' = log 10
                temperature_form="log",
                logit_bias=-10.0,
                label_smoothing=0.0,
            )
        ),
    )


def demo() -> dict:
    """A small model on 6,803 emoji drawings of 1,541 concepts and their names."""
    config = full()
    config.update(name="siglip_demo", **emoji.pairs_run())
    config["learning_rate"].update(warmup_steps=100)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=128, data=emoji.pairs(pairs["data"]["fields"], resize=36, size=32))
    config["eval_transform"].update(size=32, resize=36, resize_mode="crop")
    pairs["objectives"]["contrastive"].update(embed_dim=128)
    # Layers are not scanned: a scan saves the compilation of many layers, and few run faster without it.
    config["encoders"]["image"].update(patch=4, width=128, depth=4, heads=2, image_size=32, scan=False)
    config["encoders"]["text"].update(width=128, depth=2, heads=2, scan=False)
    return config


def tiny() -> dict:
    """The demo with narrower encoders and small batches, in seconds."""
    config = demo()
    config.update(name="siglip_tiny", total_steps=20, log_every=5, eval_every=10)
    config["checkpoint"].update(every=10)
    config["learning_rate"].update(warmup_steps=5)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=16, data=emoji.few_pairs(pairs["data"]["fields"], resize=36, size=32))
    pairs["objectives"]["contrastive"].update(embed_dim=32)
    config["encoders"]["image"].update(patch=16, width=32, depth=1)
    config["encoders"]["text"].update(width=32, depth=1)
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    return config
