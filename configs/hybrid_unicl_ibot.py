"""CoSwin with UniCL's objective on captions and classes, and DINO's and iBOT's on crops of the images.

    python -m big_ssl.main --config=configs/hybrid_unicl_ibot.py --workdir=gs://bucket/hybrid
    python -m big_ssl.main --config=configs/hybrid_unicl_ibot.py:demo --workdir=runs/hybrid_unicl_demo

Presets: `demo` trains a small model on the embedded emoji drawings, in minutes on two CPU cores; `tiny` takes
seconds, for tests; `rehearsal` is for launch/rehearse.sh.

This is not a published recipe: it shows that objectives on images alone run on Swin and CoSwin beside
UniCL's. The mask token replaces positions of the first map, all 8 x 8 that become one of the last map, where
iBOT's head predicts (as SimMIM, Xie et al. 2022, arXiv 2111.09886, and iBOT's Swin, Zhou et al. 2022, arXiv
2111.07832, do): a mask's grid has the sides of the last map, those of a crop by 32. DINO's head reads the
mean of the last map.

The encoders, the texts and the batch are those of configs/florence.py:coswin_b, but for the mask token and a
drop path of 0.1; heads and crops are those of configs/hybrid_clip_dinov2.py, where their sources are, but for
min_patches.
"""

import math
from collections.abc import Callable

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

_EPOCH = 1_250  # steps, as DINOv2's files count them


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {
        "": full,
        "demo": demo,
        "tiny": tiny,
        "rehearsal": lambda: shrink(full()),
    }
    return recipe.choose("hybrid_unicl_ibot", arg, presets)


def full() -> dict:
    """Florence's CoSwin-B and text encoder with three objectives."""
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return dict(
        name="hybrid_unicl_ibot",
        seed=0,
        total_steps=180_000,
        dtype="bfloat16",
        streams=dict(pairs=dict(batch_size=24_576, data=_data(pixels), objectives=_objectives())),
        tokenizer=dict(kind="clip_bpe", vocabulary="clip", size=49_408, length=76),
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **pixels),
        encoders=_encoders(),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.1,
            weight_decay_exclude=(
                "norm/",
                "bias$",
                "position_bias/table$",
                "position_embedding$",
                "mask_token$",
                "_scale$",
            ),
            trust_ratio_exclude=(),
            clip_norm=3.0,
            clip_scope="part",
        ),
        learning_rate=dict(kind="cosine", peak=5e-4, warmup_steps=2_000, start=0.0, final=0.0),
        lr_multipliers=(("/prototype", dict(kind="steps", values=((0, 0.0), (_EPOCH, 1.0)))),),
        ema=dict(kind="linear", peak=0.996, warmup_steps=0, start=0.996, final=0.996),
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


def _encoders():
    return dict(
        image=dict(
            kind="swin",
            width=128,
            depths=(2, 2, 18, 2),
            heads=(4, 8, 16, 32),
            window=7,
            embedding="conv",
            mask_token=True,
            drop_path=0.1,
            scan=True,
        ),
        text=dict(
            kind="text_transformer",
            width=512,
            heads=8,
            depth=12,
            causal=True,
            pooling="eot",
            activation="quick_gelu",
            epsilon=1e-12,
            kernel_init="clip",
            eot_id=placeholder(int),  # None: the vocabulary's last word
            scan=True,
        ),
    )


def _data(pixels):
    captions = dict(kind="tfds", name="image_text_pairs", split="train", data_dir="", image_key="image")
    classes = dict(kind="tfds", name="image_labels", split="train", data_dir="", image_key="image")
    named = dict(text=dict(captions={}, class_key="label", label_set=""))
    colour = dict(**pixels, flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grayscale_prob=0.2)
    return dict(
        sources=(
            dict(source=captions | dict(text_keys=("text",)), weight=1.0),
            dict(source=classes | dict(text_keys=("label",)), weight=1.0, fields=named),
        ),
        fields=dict(
            image=dict(
                kind="image",
                crop=dict(kind="random_crop", resize=224, size=224, resize_mode="crop"),
                **pixels,
                flip=False,
            ),
            global_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=224, scale=(0.4, 1.0), count=2),
                **colour,
                blur_prob=(1.0, 0.1),
                solarize_prob=(0.0, 0.2),
                mask=dict(grid=7, mask_prob=0.5, ratio=(0.1, 0.5), min_patches=1, mask_group=16),
            ),
            local_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=96, scale=(0.05, 0.4), count=8),
                **colour,
                blur_prob=(0.5,) * 8,
                solarize_prob=(),
            ),
            text=dict(kind="text", captions=dict(text=1.0), prompts="unicl", prompt_words=2),
            identity=dict(kind="identity", class_by="name", caption_by="text"),
        ),
        cache_mib=0,
        threads=64,
    )


def _objectives():
    """chunk: how many crops' or patches' logits are in memory at a time; results do not depend on it."""
    head = dict(prototypes=65_536, hidden=2_048, bottleneck=256, layers=3, norm_last_layer=False)
    temperature = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=30 * _EPOCH, final=0.07)
    return dict(
        unicl=dict(
            kind="contrastive",
            weight=0.5,  # the mean of both directions
            embed_dim=512,
            image_projection=True,
            text_projection_bias=False,
            temperature=math.exp(-1),
            temperature_form="log",
            temperature_clamp=False,
            positives="identity",
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
    )


def demo() -> dict:
    """A small model with all three objectives on 6,803 emoji drawings, their names and their classes."""
    config = full()
    config.update(name="hybrid_unicl_demo", **emoji.images_run())
    config.update(tokenizer=emoji.TOKENIZER | dict(length=24), evals=emoji.evals() | emoji.neighbours())
    config["learning_rate"].update(peak=1e-3, warmup_steps=40, final=1e-5)
    config["optimizer"].update(b2=0.98)
    pairs = config["streams"]["pairs"]
    fields = pairs["data"]["fields"]
    crops = emoji.images(fields, size=48, local_size=24, local_count=4)["fields"]
    pairs.update(batch_size=64, data=emoji.mixture(fields | crops, resize=54, size=48))
    config["eval_transform"].update(size=48, resize=54)
    objectives, fields = pairs["objectives"], pairs["data"]["fields"]
    objectives["unicl"].update(embed_dim=128)
    for name in ("dino", "ibot"):
        # An EMA center lags behind such a fast teacher.
        objectives[name].update(teacher_temperature=0.04, centering=dict(kind="sinkhorn", iterations=3))
    objectives["dino"]["head"].update(prototypes=4_096, hidden=512, bottleneck=128, norm_last_layer=True)
    # The last of two maps, of strides 4 and 8.
    fields["global_crops"]["mask"].update(grid=6, min_patches=2)
    # Blur would erase such small crops, and colour is half of the information in a drawing.
    for name in ("global_crops", "local_crops"):
        fields[name].update(jitter=(), grayscale_prob=0.0, blur_prob=(), solarize_prob=())
    config["encoders"]["image"].update(
        width=64, depths=(2, 2), heads=(2, 4), window=6, drop_path=0.0, scan=False
    )
    config["encoders"]["text"].update(width=128, depth=2, heads=2, eot_id=emoji.SEP_ID, scan=False)
    return config


def tiny() -> dict:
    """Seconds, for tests, with the centering of the recipe."""
    config = demo()
    config.update(name="hybrid_unicl_tiny", **emoji.few_images_run())
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",)) | config["evals"]
    config.update(tokenizer=emoji.TOKENIZER | dict(length=24))
    config["learning_rate"].update(peak=2e-3, warmup_steps=2)
    pairs = config["streams"]["pairs"]
    fields = pairs["data"]["fields"]
    crops = emoji.few_images(fields, size=32, local_size=16, local_count=2)["fields"]
    pairs.update(batch_size=16, data=emoji.few_mixture(fields | crops, resize=36, size=32))
    config["eval_transform"].update(size=32, resize=36)
    pairs["objectives"]["unicl"].update(embed_dim=32)
    pairs["objectives"]["dino"]["head"].update(prototypes=64, hidden=32, bottleneck=16)
    for name in ("dino", "ibot"):
        pairs["objectives"][name].update(centering=dict(kind="center", momentum=0.9))
    pairs["data"]["fields"]["global_crops"]["mask"].update(grid=4)
    config["encoders"]["image"].update(width=16, heads=(1, 2), window=4)
    config["encoders"]["text"].update(width=32, depth=1)
    return config
