"""Florence's image-text pre-training in stages (Yuan et al. 2021, arXiv 2111.11432, sections 2 and 3.1).

    python -m big_ssl.main --config=configs/florence.py:coswin_h --workdir=gs://bucket/florence
    python -m big_ssl.main --config=configs/florence.py:demo --workdir=runs/florence_demo

One run of three stages: on all data, with texts that prompts augment; on the texts as they are; at 384
pixels. The data are two datasets in TFDS's format, image_text_pairs and image_labels, in the default folder.

Models: `coswin_h` (the default), `coswin_l`, `coswin_b` and `coswin_t`. Presets: `demo` trains a small model
of the same kind on the embedded emoji drawings, in minutes on two CPU cores; `tiny` is the demo in seconds,
for tests; `rehearsal` is for launch/rehearse.sh. configs/hybrid_unicl_ibot.py adds DINO's and iBOT's
objectives on the same image encoder.

Published: CoSwin's parts (Swin's blocks, CvT's convolutional embeddings, average pooling, a linear
projection) and the 637M parameters of coswin_h; a text encoder of 12 layers, 256M parameters and at most 76
tokens; UniCL's loss, with all images of one description as positives; prompts for descriptions of one or two
words; the three stages, their steps and image sizes; the batch of 24,576; AdamW; GradCache, recomputed
activations, ZeRO and mixed precision.

Reconstructed, not published: CoSwin-H's width, depths, heads and windows (big_ssl/models/swin.py); the text
encoder's width; the joint width; the temperature's start; the learning rates, and all other values of the
optimiser; crops and normalisation. `# open` marks them, and names the source of ours. The data, FLD-900M, is
not public. Florence's code and weights never were; nobody has trained this recipe. Video CoSwin is absent:
there are no three-dimensional windows in this project.
"""

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

# T, B and L have Swin's sizes. sharp_window: the windows in the stage of 384 pixels. `# open`, in all rows:
# sharp_window; drop_path is UniCL's of Swin-T and Swin-B; embed_dim and text are those of UniCL's Swin
# configs (T, B), of CLIP's ViT-L (L), and the defaults of UniCL's code (H: 202M parameters with CLIP's
# vocabulary); peak is that of CLIP's model of about the size (Tables 18 to 20 there).
MODELS: dict[str, dict[str, Any]] = {
    "coswin_h": dict(
        peak=3.6e-4,
        embed_dim=1024,
        text=dict(width=1024, heads=16),
        # open: of the sizes tried, that of 637M parameters with the windows of the last stage.
        image=dict(width=352, depths=(2, 2, 16, 2), heads=(11, 22, 44, 88), drop_path=0.5),
        sharp_window=12,
    ),
    "coswin_l": dict(
        peak=4e-4,
        embed_dim=768,
        text=dict(width=768, heads=12),
        image=dict(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), drop_path=0.5),
        sharp_window=7,
    ),
    "coswin_b": dict(
        peak=5e-4,
        embed_dim=512,
        text=dict(width=512, heads=8),
        image=dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.5),
        sharp_window=7,
    ),
    "coswin_t": dict(
        peak=5e-4,
        embed_dim=512,
        text=dict(width=512, heads=8),
        image=dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), drop_path=0.2),
        sharp_window=7,
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {
        "": full,
        "demo": demo,
        "tiny": tiny,
        "rehearsal": lambda model: shrink(full(model)),
    }
    return recipe.choose("florence", arg, presets, MODELS)


def full(model: str) -> dict:
    """1.26M steps of 24,576 images."""
    published = MODELS[model]
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # open: UniCL's
    return dict(
        name=f"florence_{model}",
        seed=0,
        total_steps=1_260_000,
        dtype="bfloat16",
        streams=dict(pairs=_pairs(published["embed_dim"], pixels)),
        tokenizer=dict(kind="clip_bpe", vocabulary="clip", size=49_408, length=76),
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **pixels),
        encoders=_encoders(published),
        optimizer=dict(
            name="adamw",
            # open: the values of UniCL's code.
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.1,
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
        learning_rate=_rates(published["peak"])[0],
        lr_multipliers=(),
        ema=0.0,
        stages=_stages(published),
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


def _stages(published):
    """Section 2.2: the data with augmented texts, then without, then larger images.

    open: the windows. Those of 7 divide the maps at 224 pixels, of 56, 28, 14 and 7 positions, and those of
    12 the maps at 384, of 96, 48, 24 and 12. The handover resizes the tables of positions.
    """
    _, without, larger = _rates(published["peak"])
    plain = dict(text=dict(augment=False))
    sharper = plain | dict(image=dict(crop=dict(resize=384, size=384)))
    return (
        dict(name="augmented_texts", steps=1_000_000),
        dict(
            name="plain_texts",
            steps=180_000,
            learning_rate=without,
            streams=dict(pairs=dict(data=dict(fields=plain))),
        ),
        dict(
            name="384_pixels",
            steps=80_000,
            learning_rate=larger,
            streams=dict(pairs=dict(data=dict(fields=sharper))),
            encoders=dict(image=dict(window=published["sharp_window"])),
            eval_transform=dict(size=384, resize=438),
            grad_accum=2,  # GradCache: so this stage fits 512 chips of v4, see docs/plan.md
        ),
    )


def _rates(peak):
    """Of the stages. open: a cosine to a tenth, one from there to 2e-5, CLIP's for larger images, and one
    to 0."""
    warmup = dict(kind="cosine", warmup_steps=2_000, start=0.0)
    return (
        warmup | dict(peak=peak, final=peak / 10),
        warmup | dict(warmup_steps=0, peak=peak / 10, final=2e-5),
        warmup | dict(warmup_steps=0, peak=2e-5, final=0.0),
    )


def _encoders(published):
    return dict(
        image=dict(
            kind="swin",
            **published["image"],
            window=7,
            embedding="conv",
            mask_token=False,
            scan=True,
        ),
        text=dict(
            kind="text_transformer",
            **published["text"],
            depth=12,
            causal=True,
            pooling="eot",
            activation="quick_gelu",
            epsilon=1e-12,  # open: UniCL's
            kernel_init="unicl",  # open
            eot_id=placeholder(int),  # None: the vocabulary's last word
            scan=True,
        ),
    )


def _pairs(embed_dim, pixels):
    """FLD-900M has captions and names of classes; weights, open: equal."""
    captions = dict(kind="tfds", name="image_text_pairs", split="train", data_dir="", image_key="image")
    classes = dict(kind="tfds", name="image_labels", split="train", data_dir="", image_key="image")
    named = dict(text=dict(captions={}, class_key="label", label_set=""))
    return dict(
        batch_size=24_576,
        data=dict(
            sources=(
                dict(source=captions | dict(text_keys=("text",)), weight=1.0),
                dict(source=classes | dict(text_keys=("label",)), weight=1.0, fields=named),
            ),
            fields=dict(
                image=dict(
                    kind="image",
                    # open: as CLIP's, a random square of the resized image.
                    crop=dict(kind="random_crop", resize=224, size=224, resize_mode="crop"),
                    **pixels,
                    flip=False,
                ),
                # Captions and names of classes of one or two words have prompts; which ones is open: UniCL's.
                text=dict(
                    kind="text",
                    captions=dict(text=1.0),
                    prompts="unicl",
                    prompt_words=2,
                    prompt_classes="short",
                    augment=True,
                ),
                # All images of one description, a caption or a class's name, are positives.
                identity=dict(kind="identity", class_by="name", caption_by="text"),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=dict(unicl=_objective(embed_dim)),
    )


def _objective(embed_dim):
    """Equations 1 to 3, as means: the paper prints the sum over a batch, of both directions."""
    return dict(
        kind="contrastive",
        weight=0.5,  # the mean of both directions
        embed_dim=embed_dim,
        image_projection=True,
        text_projection_bias=False,
        temperature=math.exp(-1),  # open: UniCL's
        temperature_form="log",
        temperature_clamp=False,
        positives="identity",
        projection_std=0.02,  # open: UniCL's
        logit_bias=placeholder(float),
        label_smoothing=0.0,
    )


def demo(model: str) -> dict:
    """A small model on 6,803 emoji drawings: half of a batch has captions, half one of 99 classes' names."""
    config = full(model)
    config.update(name=f"florence_{model}_demo", **emoji.pairs_run())
    config["mesh"].update(fsdp=1)
    config["tokenizer"].update(length=24)  # of a prompt
    config["optimizer"].update(b2=0.98)
    config["learning_rate"].update(peak=1e-3, warmup_steps=100, final=1e-4)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=160, data=emoji.mixture(pairs["data"]["fields"], resize=54, size=48))
    config["eval_transform"].update(size=48, resize=54)
    pairs["objectives"]["unicl"].update(embed_dim=128, projection_std=placeholder(float))
    # Maps of 12 x 12, 6 x 6 and 3 x 3 positions, and in the last stage of 16 x 16, 8 x 8 and 4 x 4.
    config["encoders"]["image"].update(
        width=48, depths=(2, 2, 2), heads=(2, 4, 8), window=3, drop_path=0.0, scan=False
    )
    # CLIP's initial weights, as in the demo of configs/unicl.py.
    config["encoders"]["text"].update(
        width=128, depth=2, heads=2, kernel_init="clip", eot_id=emoji.SEP_ID, scan=False
    )
    _shorten(config, steps=(900, 250, 150), size=64, window=4, peak=1e-3)
    return config


def _shorten(config, steps, size, window, peak):
    """The stages with other steps, and other images, windows and rates in the last ones."""
    _, second, third = config["stages"]
    for stage, count in zip(config["stages"], steps, strict=True):
        stage.update(steps=count)
    config.update(total_steps=sum(steps))
    second["learning_rate"].update(peak=peak / 10, final=peak / 50)
    third["learning_rate"].update(peak=peak / 50)
    resize = size + size // 8
    third["streams"]["pairs"]["data"]["fields"]["image"]["crop"].update(resize=resize, size=size)
    third["eval_transform"].update(resize=resize, size=size)
    third["encoders"]["image"].update(window=window)


def tiny(model: str) -> dict:
    """All three stages of the demo with narrower encoders and small batches, in seconds."""
    config = demo(model)
    config.update(name=f"florence_{model}_tiny", log_every=2, eval_every=6, grad_accum=2)
    config["checkpoint"].update(every=6)
    config["learning_rate"].update(warmup_steps=2)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=16, data=emoji.few_mixture(pairs["data"]["fields"], resize=36, size=32))
    config["eval_transform"].update(size=32, resize=36)
    pairs["objectives"]["unicl"].update(embed_dim=32)
    config["encoders"]["image"].update(width=16, depths=(2, 2), heads=(1, 2), window=4)
    config["encoders"]["text"].update(width=32, depth=1)
    _shorten(config, steps=(8, 6, 4), size=48, window=6, peak=1e-3)
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    return config
