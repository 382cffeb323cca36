"""CLIP (Radford et al. 2021, arXiv 2103.00020): all nine published models, one recipe.

    python -m big_ssl.main --config=configs/clip_vitb32.py --workdir=gs://bucket/clip \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets
    python -m big_ssl.main --config=configs/clip_rn50.py:rn50x4 --workdir=...
    python -m big_ssl.main --config=configs/clip_vitb32.py:demo --workdir=runs/clip_demo

The files clip_*.py choose a model; what they share is here. Presets: `demo`, the same architecture
scaled down, on the embedded emoji drawings, minutes on two CPU cores; `tiny`, seconds, for tests.
What the paper leaves open is marked. Patch dropout (encoders.image.patch_dropout), the sigmoid loss
(contrastive.logit_bias), an average of the weights (ema), a locked image tower and another resolution
(init_from, rates) are keys to set.
"""

import functools

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from big_ssl.models import resnet, text_transformer, vit
from big_ssl.weights.format import CLIP_PIXELS
from configs import emoji
from configs.rehearsal import rehearsal

# Tables 18 to 20: the rate, the joint space, the image's side, both towers.
MODELS = {
    "rn50": dict(rate=5e-4, dim=1024, size=224, image="50", text_width=512),
    "rn101": dict(rate=5e-4, dim=512, size=224, image="101", text_width=512),
    "rn50x4": dict(rate=5e-4, dim=640, size=288, image="50x4", text_width=640),
    "rn50x16": dict(rate=4e-4, dim=768, size=384, image="50x16", text_width=768),
    "rn50x64": dict(rate=3.6e-4, dim=1024, size=448, image="50x64", text_width=1024),
    "vitb32": dict(rate=5e-4, dim=512, size=224, image="B/32", text_width=512),
    "vitb16": dict(rate=5e-4, dim=512, size=224, image="B/16", text_width=512),
    "vitl14": dict(rate=4e-4, dim=768, size=224, image="L/14", text_width=768),
}

_VITS = ("vitb32", "vitb16", "vitl14")

# OpenAI's Adam: section 2.5 and Table 18, which differ between the families.
_MOMENTS = {True: dict(b2=0.98, eps=1e-6), False: dict(b2=0.999, eps=1e-8)}


def full(model: str) -> dict:
    """Section 2.5 and Tables 18 to 20 of the paper: 32 epochs of 400M pairs, 32,768 a step."""
    chosen = MODELS[model]
    return dict(
        name=f"clip_{model}",
        seed=0,
        total_steps=390_625,
        dtype="bfloat16",
        grad_accum=1,
        remat="full",  # the paper recomputes activations too, and does not say which
        mesh=dict(data=-1, fsdp=1, tensor=1),
        mesh_rules=(),
        sharding=(),
        requires=dict(weights=False, preset_here="demo"),
        init_from=dict(path="", skip=(), copy=()),
        tokenizer=dict(kind="clip_bpe", vocabulary="clip", size=49_408, length=77),
        streams=dict(
            pairs=dict(
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
                    # A random square of the resized picture is the only augmentation.
                    views=dict(
                        image=dict(kind="window", resize=chosen["size"], crop=chosen["size"], fit="crop")
                    ),
                    captions=dict(text=1.0),
                    cache_mib=0,
                    threads=64,
                ),
                objectives=dict(contrastive=_contrastive(chosen["dim"], model in _VITS)),
            )
        ),
        views=dict(image=dict(CLIP_PIXELS)),
        masks=dict(),
        encoders=dict(image=_image_tower(model), text=_text_tower(chosen["text_width"])),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            **_MOMENTS[model in _VITS],
            weight_decay=0.2,
            # "All weights that are not gains or biases".
            decay_exclude=("_norm/", "_bn/", "bias$", "class_token$", "logit_scale$"),
            adapt_exclude=(),
            clip_norm=0.0,
            clip_per="all",
        ),
        learning_rate=dict(kind="cosine", peak=chosen["rate"], warmup_steps=2_000, start=0.0, final=0.0),
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


def high_resolution() -> dict:
    """ViT-L/14@336: one more epoch at 336 pixels, from the weights of 224, at a lower rate."""
    config = full("vitl14")
    config.update(name="clip_vitl14_336", total_steps=12_207)
    config["learning_rate"].update(peak=2e-5)
    config["streams"]["pairs"]["data"]["views"]["image"].update(resize=336, crop=336)
    config["encoders"]["image"].update(image_size=336)
    config["requires"].update(weights=True)
    return config


def _contrastive(dim, projection):
    return dict(
        kind="contrastive",
        weight=0.5,  # the mean of both directions; ALIGN's weight 1 is their sum
        dim=dim,
        image_projection=projection,
        text_bias=False,
        temperature=0.07,
        temperature_form="log",
        logit_bias=placeholder(float),
        label_smoothing=0.0,
    )


def _image_tower(model):
    chosen = MODELS[model]
    if model in _VITS:
        tower = dict(vit.VARIANTS[chosen["image"]], **vit.CLIP, image_size=chosen["size"], patch_dropout=0.0)
        return dict(kind="vit", **tower, scan=True)
    # Open in the paper: how many examples batch norm sees; 0 is all of them.
    return dict(kind="resnet", **resnet.VARIANTS[chosen["image"]], group_size=0, bn_momentum=0.9, scan=True)


def _text_tower(width):
    tower = dict(width=width, depth=12, heads=width // 64, **text_transformer.CLIP, eot_id=placeholder(int))
    return dict(kind="text_transformer", **tower, scan=True)


def demo(model: str) -> dict:
    """The same two architectures, thin, on 6,803 emoji drawings of 1,541 concepts."""
    config = full(model)
    config.update(
        name=f"clip_{model}_demo",
        **emoji.pairs_run(),
    )
    config["learning_rate"].update(peak=1e-3, warmup_steps=100)
    size = 32 if model in _VITS else 64
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=128, data=emoji.pairs(resize=size + size // 8, crop=size))
    pairs["objectives"]["contrastive"].update(dim=128)
    thin: dict = dict(width=16, blocks=(1, 1, 1, 1), pooled_dim=128)
    if model in _VITS:
        thin = dict(patch=4, width=128, depth=4, heads=2)
    # A loop saves compiling many layers; few are quicker without.
    config["encoders"]["image"].update(thin, image_size=size, scan=False)
    config["encoders"]["text"].update(width=128, depth=2, heads=2, eot_id=emoji.SEP_ID, scan=False)
    return config


def tiny(model: str) -> dict:
    """The demo's code path in seconds."""
    config = demo(model)
    config.update(name=f"clip_{model}_tiny", total_steps=20, log_every=5, eval_every=10)
    config["checkpoint"].update(every=10)
    config["learning_rate"].update(warmup_steps=5)
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=16, data=emoji.few_pairs(resize=36, crop=32))
    pairs["objectives"]["contrastive"].update(dim=32)
    thin = dict(patch=16, width=32, depth=1) if model in _VITS else dict(width=8, pooled_dim=32)
    config["encoders"]["image"].update(thin, image_size=32)
    config["encoders"]["text"].update(width=32, depth=1)
    config["evals"] = emoji.evals(("twemoji",), ("fxemoji",))
    return config


def get_config(model: str, arg: str, **more) -> ConfigDict:
    """One model's recipe; arg: a preset, KEY=VALUE changes, or both (big_ssl/recipe.py).

    more: {preset: another model, or what builds its dict}, beside demo and tiny.
    """
    presets = {"": model, **more}
    built = {name: functools.partial(full, m) if isinstance(m, str) else m for name, m in presets.items()}
    built |= dict(demo=functools.partial(demo, model), tiny=functools.partial(tiny, model))
    built |= dict(rehearsal=lambda: rehearsal(full(model)))
    return recipe.choose(f"clip_{model}", arg, built)
