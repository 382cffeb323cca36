"""CLIP (Radford et al. 2021, arXiv 2103.00020): the nine published models, on 400M image-text pairs.

    python -m big_ssl.main --config=configs/clip.py:vitb32 --workdir=gs://bucket/clip \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/clip.py:vitl14_336 --workdir=... --config.init_from.path=RUN
    python -m big_ssl.main --config=configs/clip.py:demo --workdir=runs/clip_demo

Models: `vitb32` (the default), `vitb16`, `vitl14`, `vitl14_336`, `rn50`, `rn101`, `rn50x4`, `rn50x16` and
`rn50x64`. Presets: `demo` trains a small model of the same kind (`rn50,demo`: a ResNet) on the embedded emoji
drawings, in minutes on two CPU cores; `tiny` is the demo in seconds, for tests; `rehearsal` is for
launch/rehearse.sh.

Values are from section 2.5 and Tables 18 to 20 of the paper. `# open` marks a value that the paper leaves
open, and names the source of ours. Keys for what others have added: encoders.image.patch_dropout (FLIP),
contrastive.logit_bias (the sigmoid loss), ema, and init_from with lr_multipliers for a locked image encoder.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

# Tables 18 to 20. peak: the learning rate; size: the image's side; text: the text encoder's width and heads.
_SMALL, _MEDIUM, _LARGE = dict(width=512, heads=8), dict(width=640, heads=10), dict(width=768, heads=12)
MODELS: dict[str, dict[str, Any]] = {
    "vitb32": dict(
        peak=5e-4, embed_dim=512, size=224, text=_SMALL, image=dict(patch=32, width=768, depth=12, heads=12)
    ),
    "vitb16": dict(
        peak=5e-4, embed_dim=512, size=224, text=_SMALL, image=dict(patch=16, width=768, depth=12, heads=12)
    ),
    "vitl14": dict(
        peak=4e-4, embed_dim=768, size=224, text=_LARGE, image=dict(patch=14, width=1024, depth=24, heads=16)
    ),
    # One more epoch at 336 pixels, from the weights of vitl14.
    "vitl14_336": dict(
        peak=2e-5, embed_dim=768, size=336, text=_LARGE, image=dict(patch=14, width=1024, depth=24, heads=16)
    ),
    "rn50": dict(peak=5e-4, embed_dim=1024, size=224, text=_SMALL, image=dict(width=64, blocks=(3, 4, 6, 3))),
    "rn101": dict(
        peak=5e-4, embed_dim=512, size=224, text=_SMALL, image=dict(width=64, blocks=(3, 4, 23, 3))
    ),
    "rn50x4": dict(
        peak=5e-4, embed_dim=640, size=288, text=_MEDIUM, image=dict(width=80, blocks=(4, 6, 10, 6))
    ),
    "rn50x16": dict(
        peak=4e-4, embed_dim=768, size=384, text=_LARGE, image=dict(width=96, blocks=(6, 8, 18, 8))
    ),
    "rn50x64": dict(
        peak=3.6e-4,
        embed_dim=1024,
        size=448,
        text=dict(width=1024, heads=16),
        image=dict(width=128, blocks=(3, 15, 36, 10)),
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda model: shrink(full(model))}
    return recipe.choose("clip", arg, presets, MODELS)


def full(model: str) -> dict:
    """32 epochs of 400M pairs, 32,768 a step."""
    published, is_vit = MODELS[model], model.startswith("vit")
    size = published["size"]
    pixels = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    return dict(
        name=f"clip_{model}",
        seed=0,
        total_steps=12_207 if model == "vitl14_336" else 390_625,
        dtype="bfloat16",
        streams=dict(pairs=_pairs(published["embed_dim"], size, pixels, is_vit)),
        tokenizer=dict(kind="clip_bpe", vocabulary="clip", size=49_408, length=77),
        eval_transform=dict(size=size, resize=size, resize_mode="crop", filter="bicubic", **pixels),
        encoders=dict(
            image=_vit(published) if is_vit else _resnet(published),
            text=dict(
                kind="text_transformer",
                **published["text"],
                depth=12,
                causal=True,
                pooling="eot",
                activation="quick_gelu",
                epsilon=1e-5,
                kernel_init="clip",
                eot_id=placeholder(int),  # None: the vocabulary's last word
                scan=True,
            ),
        ),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            **(dict(b2=0.98, eps=1e-6) if is_vit else dict(b2=0.999, eps=1e-8)),  # Table 18
            weight_decay=0.2,
            # "All weights that are not gains or biases".
            weight_decay_exclude=("_norm/", "_bn/", "bias$", "class_token$", "logit_scale$"),
            trust_ratio_exclude=(),
            clip_norm=0.0,
            clip_scope="all",
        ),
        learning_rate=dict(kind="cosine", peak=published["peak"], warmup_steps=2_000, start=0.0, final=0.0),
        lr_multipliers=(),
        ema=0.0,
        init_from=dict(path="", exclude=(), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=1, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",  # the paper recomputes activations too, and leaves open which
        requires=dict(weights=model == "vitl14_336", preset_here="demo"),
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


def _pairs(embed_dim, size, pixels, image_projection):
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
            # A random square of the resized image is the only augmentation.
            fields=dict(
                image=dict(
                    kind="image",
                    crop=dict(kind="random_crop", resize=size, size=size, resize_mode="crop"),
                    **pixels,
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
                weight=0.5,  # the mean of both directions; ALIGN's 1.0 is their sum
                embed_dim=embed_dim,
                image_projection=image_projection,  # a ResNet's attention pool projects
                text_projection_bias=False,
                temperature=0.07,
                temperature_form="log",
                logit_bias=placeholder(float),
                label_smoothing=0.0,
            )
        ),
    )


def _vit(published):
    return dict(
        kind="vit",
        **published["image"],
        image_size=published["size"],
        pre_norm=True,
        patch_bias=False,
        activation="quick_gelu",
        epsilon=1e-5,
        pooling="cls",
        kernel_init="torch",
        patch_dropout=0.0,
        scan=True,
    )


def _resnet(published):
    return dict(
        kind="resnet",
        **published["image"],
        image_size=published["size"],
        pooled_dim=published["embed_dim"],
        bn_group=0,  # open: batch norm over the whole batch
        bn_momentum=0.9,  # open: PyTorch's default
        scan=True,
    )


def demo(model: str) -> dict:
    """A small model on 6,803 emoji drawings of 1,541 concepts and their names."""
    config, is_vit = full(model), model.startswith("vit")
    config.update(name=f"clip_{model}_demo", **emoji.pairs_run())
    config["learning_rate"].update(peak=1e-3, warmup_steps=100)
    size = 32 if is_vit else 64
    pairs = config["streams"]["pairs"]
    resize = size + size // 8
    pairs.update(batch_size=128, data=emoji.pairs(pairs["data"]["fields"], resize=resize, size=size))
    config["eval_transform"].update(size=size, resize=resize)
    pairs["objectives"]["contrastive"].update(embed_dim=128)
    small: dict = dict(width=16, blocks=(1, 1, 1, 1), pooled_dim=128)
    if is_vit:
        small = dict(patch=4, width=128, depth=4, heads=2)
    # Layers are not scanned: a scan saves the compilation of many layers, and few run faster without it.
    config["encoders"]["image"].update(small, image_size=size, scan=False)
    config["encoders"]["text"].update(width=128, depth=2, heads=2, eot_id=emoji.SEP_ID, scan=False)
    return config


def tiny(model: str) -> dict:
    """The demo with narrower encoders and small batches, in seconds."""
    config = demo(model)
    config.update(name=f"clip_{model}_tiny", total_steps=20, log_every=5, eval_every=10)
    config["checkpoint"].update(every=10)
    config["learning_rate"].update(warmup_steps=5)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=16, data=emoji.few_pairs(pairs["data"]["fields"], resize=36, size=32))
    config["eval_transform"].update(size=32, resize=36)
    pairs["objectives"]["contrastive"].update(embed_dim=32)
    is_vit = config["encoders"]["image"]["kind"] == "vit"
    small = dict(patch=16, width=32, depth=1) if is_vit else dict(width=8, pooled_dim=32)
    config["encoders"]["image"].update(small, image_size=32)
    config["encoders"]["text"].update(width=32, depth=1)
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    return config
