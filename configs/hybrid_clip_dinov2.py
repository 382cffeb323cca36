"""One ViT with CLIP's objective on captions and DINOv2's three on crops of the same images.

    python -m big_ssl.main --config=configs/hybrid_clip_dinov2.py --workdir=gs://bucket/hybrid \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/hybrid_clip_dinov2.py:demo --workdir=runs/hybrid_demo

Presets: `contrastive` and `self_supervised` keep one half each, for comparison; `demo` trains a small model
on the embedded emoji drawings, in minutes on two CPU cores, and `demo_contrastive` and `demo_self_supervised`
are its halves; `tiny`, `tiny_contrastive` and `tiny_self_supervised` take seconds, for tests; `rehearsal` is
for launch/rehearse.sh.

This is not a published recipe: it lists the objectives with their weights, and one step trains them (SILC,
Naeem et al. 2023, arXiv 2310.13355, adds DINO's objective to CLIP's; TIPS, Maninis et al. 2024, arXiv
2410.16512, DINO's and iBOT's). The encoders, the batch and the texts are those of CLIP's ViT-B/16, the heads
those of DINOv2's short run. The sizes of the crops are SILC's, and so is an average that never stops: a
teacher that no longer moves would learn no more from the texts.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from big_ssl.evals import suite
from configs import emoji
from configs.rehearsal import shrink

_EPOCH = 1_250  # steps, as DINOv2's files count them


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {
        "": full,
        "contrastive": lambda: contrastive(full()),
        "self_supervised": lambda: self_supervised(full()),
        "demo": demo,
        "demo_contrastive": lambda: contrastive(demo()),
        "demo_self_supervised": lambda: self_supervised(demo()),
        "tiny": tiny,
        "tiny_contrastive": lambda: contrastive(tiny()),
        "tiny_self_supervised": lambda: self_supervised(tiny()),
        "rehearsal": lambda: shrink(full()),
    }
    return recipe.choose("hybrid_clip_dinov2", arg, presets)


def full() -> dict:
    """CLIP's two encoders with DINOv2's ViT blocks, and four objectives."""
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return dict(
        name="hybrid_clip_dinov2",
        seed=0,
        total_steps=390_625,
        dtype="bfloat16",
        streams=dict(pairs=_pairs(pixels)),
        tokenizer=dict(kind="clip_bpe", vocabulary="clip", size=49_408, length=77),
        eval_transform=dict(size=224, resize=224, resize_mode="crop", filter="bicubic", **pixels),
        encoders=_encoders(),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.98,
            eps=1e-6,
            weight_decay=0.2,
            weight_decay_exclude=("_norm/", "bias$", "_scale$", "logit_scale$"),
            trust_ratio_exclude=(),
            clip_norm=3.0,
            clip_scope="part",
        ),
        learning_rate=dict(kind="cosine", peak=5e-4, warmup_steps=2_000, start=0.0, final=0.0),
        lr_multipliers=(("/prototype", dict(kind="steps", values=((0, 0.0), (_EPOCH, 1.0)))),),
        ema=dict(kind="linear", peak=0.996, warmup_steps=0, start=0.996, final=0.996),
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
            epsilon=1e-6,
            pooling="cls",
            kernel_init="dinov2",
            mask_token=True,
            position_resize="dinov2",
            layer_scale=1e-5,
            drop_path=0.1,
            drop_path_mode="subset",
            drop_path_groups=512,
            scan=True,
        ),
        text=dict(
            kind="text_transformer",
            width=512,
            depth=12,
            heads=8,
            causal=True,
            pooling="eot",
            activation="quick_gelu",
            epsilon=1e-5,
            kernel_init="clip",
            eot_id=placeholder(int),  # None: the vocabulary's last word
            scan=True,
        ),
    )


def _pairs(pixels):
    colour = dict(**pixels, flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grayscale_prob=0.2)
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
            fields=dict(
                image=dict(
                    kind="image",
                    crop=dict(kind="random_crop", resize=224, size=224, resize_mode="crop"),
                    **pixels,
                ),
                global_crops=dict(
                    kind="image",
                    crop=dict(kind="random_resized_crop", size=224, scale=(0.4, 1.0), count=2),
                    **colour,
                    blur_prob=(1.0, 0.1),
                    solarize_prob=(0.0, 0.2),
                    mask=dict(grid=14, mask_prob=0.5, ratio=(0.1, 0.5), min_patches=4, mask_group=16),
                ),
                local_crops=dict(
                    kind="image",
                    crop=dict(kind="random_resized_crop", size=96, scale=(0.05, 0.4), count=8),
                    **colour,
                    blur_prob=(0.5,) * 8,
                    solarize_prob=(),
                ),
                text=dict(kind="text", captions=dict(text=1.0)),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=_objectives(),
    )


def _objectives():
    """chunk: how many crops' or patches' logits are in memory at a time; results do not depend on it."""
    head = dict(prototypes=65_536, hidden=2_048, bottleneck=256, layers=3, norm_last_layer=False)
    temperature = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=30 * _EPOCH, final=0.07)
    return dict(
        contrastive=dict(
            kind="contrastive",
            weight=0.5,  # the mean of both directions
            embed_dim=512,
            image_projection=True,
            text_projection_bias=False,
            temperature=0.07,
            temperature_form="log",
            logit_bias=placeholder(float),
            label_smoothing=0.0,
        ),
        dino=dict(
            kind="dino",
            weight=1.0,
            head=head,
            teacher_temperature=dict(temperature),
            centering=dict(kind="center", momentum=0.9),
            chunk=2,
        ),
        ibot=dict(
            kind="ibot",
            weight=1.0,
            head="dino",
            teacher_temperature=dict(temperature),
            centering=dict(kind="center", momentum=0.9),
            center_over="masked",
            chunk=128,
        ),
        koleo=dict(kind="koleo", weight=0.1, koleo_group=64, crops=2),
    )


def contrastive(config: dict) -> dict:
    """CLIP's half: the other objectives, their masks and their crops are left out."""
    pairs = config["streams"]["pairs"]
    for name in ("dino", "ibot", "koleo"):
        del pairs["objectives"][name]
    for name in ("global_crops", "local_crops"):
        del pairs["data"]["fields"][name]
    config.update(name=f"{config['name']}_contrastive", lr_multipliers=())
    return config


def self_supervised(config: dict) -> dict:
    """DINOv2's half: the texts and the evaluators that need them are left out."""
    config.update(name=f"{config['name']}_self_supervised")
    pairs = config["streams"]["pairs"]
    del pairs["objectives"]["contrastive"], config["encoders"]["text"]
    for name in ("image", "text"):
        del pairs["data"]["fields"][name]
    config["evals"] = {
        name: options
        for name, options in config["evals"].items()
        if "encode_text" not in suite.EVALUATORS[options["kind"]].requires
    }
    return config


def demo() -> dict:
    """A small model with all four objectives on 6,803 emoji drawings of 1,541 concepts and their names."""
    config = full()
    config.update(name="hybrid_demo", **emoji.images_run())
    config.update(tokenizer=dict(emoji.TOKENIZER), evals=emoji.evals() | config["evals"])
    config["learning_rate"].update(peak=1e-3, warmup_steps=40, final=1e-5)
    pairs = config["streams"]["pairs"]
    crops = emoji.images(pairs["data"]["fields"], size=48, local_size=24, local_count=4)["fields"]
    pairs.update(batch_size=128, data=emoji.pairs(pairs["data"]["fields"], resize=54, size=48))
    pairs["data"].update(fields=crops | pairs["data"]["fields"])
    fields = pairs["data"]["fields"]
    config["eval_transform"].update(size=48, resize=54)
    objectives = pairs["objectives"]
    objectives["contrastive"].update(embed_dim=128)
    for name in ("dino", "ibot"):
        # An EMA center lags behind such a fast teacher.
        objectives[name].update(teacher_temperature=0.04, centering=dict(kind="sinkhorn", iterations=3))
    objectives["dino"]["head"].update(prototypes=4_096, hidden=512, bottleneck=128, norm_last_layer=True)
    objectives["koleo"].update(koleo_group=0)
    fields["global_crops"]["mask"].update(grid=4, min_patches=2)
    # Blur would erase such small crops, and colour is half of the information in a drawing.
    for name in ("global_crops", "local_crops"):
        fields[name].update(jitter=(), grayscale_prob=0.0, blur_prob=(), solarize_prob=())
    config["encoders"]["image"].update(
        patch=12, width=128, depth=4, heads=4, image_size=48, drop_path=0.0, drop_path_groups=1, scan=False
    )
    config["encoders"]["image"].update(
        feed_forward="mlp", layer_scale=0.1, registers=0, rope_base=placeholder(float), rope_rescale=1.0
    )
    config["encoders"]["text"].update(width=128, depth=2, heads=2, eot_id=emoji.SEP_ID, scan=False)
    return config


def tiny() -> dict:
    """Seconds, for tests, with the centering and the layer scale of the recipe."""
    config = demo()
    config.update(name="hybrid_tiny", **emoji.few_images_run())
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",)) | config["evals"]
    config["learning_rate"].update(peak=2e-3, warmup_steps=2)
    pairs = config["streams"]["pairs"]
    crops = emoji.few_images(pairs["data"]["fields"], size=32, local_size=16, local_count=2)["fields"]
    pairs.update(batch_size=16, data=emoji.few_pairs(pairs["data"]["fields"], resize=36, size=32))
    pairs["data"].update(fields=crops | pairs["data"]["fields"])
    config["eval_transform"].update(size=32, resize=36)
    objectives = pairs["objectives"]
    objectives["contrastive"].update(embed_dim=32)
    for name in ("dino", "ibot"):
        objectives[name].update(centering=dict(kind="center", momentum=0.9))
    objectives["dino"]["head"].update(prototypes=64, hidden=32, bottleneck=16)
    config["encoders"]["image"].update(patch=8, width=32, depth=1, heads=2, image_size=32, layer_scale=1e-5)
    config["encoders"]["text"].update(width=32, depth=1)
    return config
