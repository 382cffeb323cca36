"""DINOv2's published models (Oquab et al. 2023, arXiv 2304.07193), trained on with your own images.

    python -m big_ssl.convert --from=hf_dinov2 --input=dinov2-base --output=dinov2_vitb14
    python -m big_ssl.main --config=configs/dinov2_continue.py:vitb14 --workdir=runs/continued \
        --config.init_from.path=dinov2_vitb14 --config.streams.images.data.source.path=my_images

my_images is a folder of images, with subfolders or without; labels are not needed. Models: `vits14` (the
default), `vitb14`, `vitl14` and `vitg14`, and each with `_reg` for the model with registers. Presets: `demo`
continues runs/dinov2_demo, a run of configs/dinov2.py:vitl16_short,demo, on the embedded emoji drawings;
`tiny` is the demo in seconds, for tests, from scratch; `rehearsal` is for launch/rehearse.sh.

The published backbones come without their heads, and randomly initialised heads would destroy a backbone.
So only the heads train for the first 1,250 steps; then the backbone does too, at a tenth of their learning
rate. Nobody has published a recipe for this: values are those of the short run in configs/dinov2.py, and the
ones marked `# open` are ours, untried at full size. A file teacher_checkpoint.pth of the published code has
heads, which --from=dinov2 keeps: give the heads their sizes here, and set init_from.exclude to ().
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from big_ssl import recipe
from configs import emoji
from configs.rehearsal import shrink

# Registers' position tables are resized otherwise, as published.
_PLAIN: dict[str, Any] = dict(registers=0, position_resize="dinov2")
_REGISTERS: dict[str, Any] = dict(registers=4, position_resize="bicubic_antialias")
_SIZES: dict[str, dict[str, Any]] = {
    "vits14": dict(width=384, depth=12, heads=6, feed_forward="mlp"),
    "vitb14": dict(width=768, depth=12, heads=12, feed_forward="mlp"),
    "vitl14": dict(width=1024, depth=24, heads=16, feed_forward="mlp"),
    "vitg14": dict(width=1536, depth=40, heads=24, feed_forward="swiglu"),
}
MODELS = {name: size | _PLAIN for name, size in _SIZES.items()}
MODELS |= {f"{name}_reg": size | _REGISTERS for name, size in _SIZES.items()}
_HEADS_ALONE = 1_250


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {"": full, "demo": demo, "tiny": tiny}
    presets["rehearsal"] = lambda model: shrink(full(model))
    return recipe.choose("dinov2_continue", arg, presets, MODELS)


def full(model: str) -> dict:
    """25,000 steps of 512 images, with two global and eight local crops of each."""
    pixels = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return dict(
        name=f"dinov2_continue_{model.removesuffix('_reg')}",
        seed=0,
        total_steps=25_000,  # open
        dtype="bfloat16",
        streams=dict(
            images=dict(
                batch_size=512,  # open
                data=_data(pixels),
                objectives=_objectives(),
            )
        ),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        eval_transform=dict(size=224, resize=256, resize_mode="crop", filter="bicubic", **pixels),
        encoders=dict(image=_encoder(model)),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=dict(kind="cosine", peak=0.04, warmup_steps=0, start=0.0, final=0.4),
            # Tokens, position tables and the lengths of prototypes are decayed, as published.
            weight_decay_exclude=("_norm/", "bias$", "_scale$"),
            trust_ratio_exclude=(),
            clip_norm=3.0,
            clip_scope="part",
        ),
        learning_rate=dict(
            kind="cosine", peak=1e-3, warmup_steps=_HEADS_ALONE, start=0.0, final=1e-6
        ),  # open
        lr_multipliers=_lr_multipliers(_HEADS_ALONE),
        ema=dict(kind="cosine", peak=0.994, warmup_steps=0, start=0.0, final=1.0),  # open: of the long run
        init_from=dict(path="", exclude=("heads/",), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=8, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",
        requires=dict(weights=True, preset_here="demo"),
        profile=0,
        log_every=100,
        eval_every=2_500,
        checkpoint=dict(every=2_500, keep=3, best=""),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(),
        predictors=dict(),
    )


def _encoder(model):
    return dict(
        kind="vit",
        patch=14,
        **MODELS[model],
        image_size=518,  # of the published position tables
        epsilon=1e-6,
        pooling="cls",
        kernel_init="dinov2",
        mask_token=True,
        layer_scale=1e-5,
        drop_path=0.1,  # open
        drop_path_mode="subset",
        drop_path_groups=32,
        rope_base=placeholder(float),
        rope_rescale=1.0,
        scan=True,
    )


def _data(pixels):
    colour = dict(**pixels, flip=True, jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grayscale_prob=0.2)
    return dict(
        source=dict(kind="image_folder", path=""),
        fields=dict(
            global_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=224, scale=(0.32, 1.0), count=2),
                **colour,
                blur_prob=(1.0, 0.1),
                solarize_prob=(0.0, 0.2),
                mask=dict(grid=16, mask_prob=0.5, ratio=(0.1, 0.5), min_patches=4, mask_group=16),
            ),
            local_crops=dict(
                kind="image",
                crop=dict(kind="random_resized_crop", size=98, scale=(0.05, 0.32), count=8),
                **colour,
                blur_prob=(0.5,) * 8,
                solarize_prob=(),
            ),
        ),
        cache_mib=0,
        threads=16,
    )


def _objectives():
    """chunk: how many crops' or patches' logits are in memory at a time; results do not depend on it."""
    head = dict(prototypes=65_536, hidden=2_048, bottleneck=256, layers=3, norm_last_layer=False)
    temperature = dict(kind="linear", start=0.04, peak=0.07, warmup_steps=2 * _HEADS_ALONE, final=0.07)
    return dict(
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
        koleo=dict(kind="koleo", weight=0.1, koleo_group=16, crops=2),
    )


def _lr_multipliers(heads_alone):
    """The backbone waits for the heads, and then has a tenth of their learning rate."""
    return (("encoders/", dict(kind="steps", values=((0, 0.0), (heads_alone, 0.1)))),)


def demo() -> dict:
    """The small model of configs/dinov2.py:vitl16_short,demo with new heads, on the same emoji drawings."""
    config = full("vits14")
    config.update(name="dinov2_continue_demo", **emoji.images_run())
    config.update(
        lr_multipliers=_lr_multipliers(50),
        init_from=dict(path="runs/dinov2_demo", exclude=("heads/",), remap=()),
    )
    config["learning_rate"].update(peak=1e-3, warmup_steps=40, final=1e-5)
    config["optimizer"].update(b2=0.98)
    images = config["streams"]["images"]
    images.update(
        batch_size=128,
        data=emoji.images(images["data"]["fields"], size=48, local_size=24, local_count=4),
    )
    fields = images["data"]["fields"]
    config["eval_transform"].update(size=48, resize=48)
    for name in ("dino", "ibot"):
        # An EMA center lags behind such a fast teacher.
        images["objectives"][name].update(
            teacher_temperature=0.04, centering=dict(kind="sinkhorn", iterations=3)
        )
    images["objectives"]["dino"]["head"].update(
        prototypes=4_096, hidden=512, bottleneck=128, norm_last_layer=True
    )
    images["objectives"]["koleo"].update(koleo_group=0)
    fields["global_crops"]["mask"].update(grid=4, min_patches=2)
    # Blur would erase such small crops, and colour is half of the information in a drawing.
    for name in ("global_crops", "local_crops"):
        fields[name].update(jitter=(), grayscale_prob=0.0, blur_prob=(), solarize_prob=())
    config["encoders"]["image"].update(
        patch=12, width=128, depth=4, heads=4, image_size=48, drop_path=0.0, drop_path_groups=1, scan=False
    )
    config["encoders"]["image"].update(layer_scale=0.1)
    return config


def tiny() -> dict:
    """Seconds, for tests, from scratch, with the centering and the layer scale of the recipe."""
    config = demo()
    config.update(name="dinov2_continue_tiny", **emoji.few_images_run())
    config.update(lr_multipliers=_lr_multipliers(5), init_from=dict(path="", exclude=(), remap=()))
    config["learning_rate"].update(peak=2e-3, warmup_steps=2)
    images = config["streams"]["images"]
    images.update(
        batch_size=16,
        data=emoji.few_images(images["data"]["fields"], size=32, local_size=16, local_count=2),
    )
    config["eval_transform"].update(size=32, resize=32)
    for name in ("dino", "ibot"):
        images["objectives"][name].update(centering=dict(kind="center", momentum=0.9))
    images["objectives"]["dino"]["head"].update(prototypes=64, hidden=32, bottleneck=16)
    config["encoders"]["image"].update(patch=8, width=32, depth=1, heads=2, image_size=32, layer_scale=1e-5)
    return config
