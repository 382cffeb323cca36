"""Depth of every pixel on a pre-trained image encoder, by DINOv2's protocol (Oquab et al. 2023, arXiv
2304.07193, section 7.4): a linear head or DPT on frozen features, on NYUv2.

    python -m big_ssl.convert --from=dinov2 --input=dinov2_vitb14_pretrain.pth --output=dinov2_vitb14
    python -m big_ssl.main --config=configs/transfer_depth.py:vitb14 --workdir=runs/nyu \
        --config.init_from.path=dinov2_vitb14 --config.streams.scenes.data.source.data_dir=gs://bucket/tfds \
        --config.evals.nyu.data.data_dir=gs://bucket/tfds
    python -m big_ssl.main --config=configs/transfer_depth.py:demo --workdir=runs/depth_demo
    python -m big_ssl.predict --checkpoint=runs/depth_demo --task=depth --images=PHOTOS --output=drawn

Models: DINOv2's `vitb14` (the default), `vits14`, `vitl14` and `vitg14`, and Swin's `swin_t`, whose four
maps are read in place of layers. Any other encoder is one entry of MODELS, any weights are
--config.init_from.path. Presets: `linear4` reads four layers; `dpt` is the larger head; `tuned` also trains
the encoder, after the head alone. `demo` learns the synthetic depths of composited scenes, in minutes on two
CPU cores, from scratch; `tiny` is the demo in seconds, for tests.

Published, from DINOv2's configs for NYUv2 (DPT) and KITTI (linear): the heads, 256 bins up to 10 metres, the
two losses, AdamW with its weight decay, 38,400 steps of 16 images, the warm-up, gradients clipped at 35,
flips, the evaluation. Of the linear heads' configs for NYUv2 we have only a copy of the one-layer head's, in
the code of another paper (Denoising Vision Transformers): its learning rate, 5e-3, is that of linear heads
here. `# open` marks what is not published, or from memory.

What differs, and why:
- The gradient loss takes differences of rows and columns, as in MegaDepth. The published code takes them
  along the batch and the channels of arrays [B, 1, H, W], and is 0 for the two images of a GPU.
- Crops are squares of 420 pixels, 30 patches, in place of 416 x 544; images are not rotated by up to 2.5
  degrees, nor are their borders cut; `jitter` is in place of a gamma and factors of channels.
- DPT reads layers after the encoder's final norm, the published one before it.
- TFDS has 47,584 training images, the published split about half of them.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe

_PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _dinov2(width, depth, heads, layers, feed_forward="mlp") -> dict[str, Any]:
    """A released DINOv2. layers: those that four-layer heads and DPT read; () without."""
    return dict(
        layers=layers,
        readout="cls",
        # Of DPT's reassembled maps, from fine to coarse.
        hidden=(width // 8, width // 4, width // 2, width),
        encoder=dict(
            kind="vit",
            patch=14,
            width=width,
            depth=depth,
            heads=heads,
            feed_forward=feed_forward,
            image_size=518,
            epsilon=1e-6,
            pooling="cls",
            kernel_init="dinov2",
            mask_token=True,
            position_resize="dinov2",
            layer_scale=1e-5,
            scan=True,
        ),
    )


MODELS: dict[str, dict[str, Any]] = {
    "vitb14": _dinov2(768, 12, 12, (2, 5, 8, 11)),
    "vits14": _dinov2(384, 12, 6, (2, 5, 8, 11)),
    "vitl14": _dinov2(1024, 24, 16, (4, 11, 17, 23)),
    "vitg14": _dinov2(1536, 40, 24, (9, 19, 29, 39), "swiglu"),
    "swin_t": dict(
        layers=(),
        readout="",
        hidden=(),
        encoder=dict(kind="swin", width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7, scan=True),
    ),
}


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {
        "": full,
        "linear4": linear4,
        "dpt": dpt,
        "tuned": tuned,
        "demo": demo,
        "tiny": tiny,
    }
    return recipe.choose("transfer_depth", arg, presets, MODELS)


def full(model: str) -> dict:
    """A linear head on the last layer of a frozen encoder."""
    published = MODELS[model]
    return dict(
        name=f"depth_{model}",
        seed=0,
        total_steps=38_400,
        dtype="bfloat16",
        streams=dict(scenes=_scenes(published["readout"])),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        # The shorter side; depths are predicted for the whole image, without the crop.
        eval_transform=dict(size=420, resize=480, resize_mode="crop", filter="bicubic", **_PIXELS),
        encoders=dict(image=dict(published["encoder"])),
        optimizer=dict(
            name="adamw",
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.01,
            weight_decay_exclude=("norm/", "position_embedding$", "class_token$"),
            trust_ratio_exclude=(),
            clip_norm=35.0,
            clip_scope="all",
        ),
        learning_rate=dict(kind="cosine", peak=5e-3, warmup_steps=12_800, start=5e-6, final=5e-11),
        lr_multipliers=(("encoders/", 0.0),),  # frozen
        ema=0.0,
        # The heads of a run are not used here, and public backbones may have no mask token.
        init_from=dict(path="", exclude=("heads/", "mask_token$"), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=1, tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",
        requires=dict(weights=True, preset_here="demo"),
        profile=0,
        log_every=100,
        eval_every=800,
        checkpoint=dict(every=800, keep=2, best="min:eval/depth/nyu/abs_rel"),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=dict(nyu=dict(kind="depth", data=_nyu("validation"), eigen_crop=True, flip=True, resize=False)),
        predictors=dict(),
    )


def _scenes(readout):
    return dict(
        batch_size=16,
        data=dict(
            source=_nyu("train"),
            fields=dict(
                image=dict(
                    kind="image",
                    crop=dict(kind="random_crop", resize=480, size=420, resize_mode="crop"),
                    **_PIXELS,
                    flip=True,
                    jitter=(0.25, 0.1, 0.1, 0.0),  # open
                    jitter_prob=0.5,
                ),
                depth=dict(kind="depth", image="image", key="depth", scale=1.0),
            ),
            cache_mib=0,
            threads=64,
        ),
        objectives=dict(
            depth=dict(
                kind="depth",
                weight=1.0,
                head=dict(
                    kind="linear", readout=readout, bins=256, min_depth=1e-3, max_depth=10.0, upsample=4
                ),
                layers=(),
                gradient_weight=0.5,
                warmup_steps=100,
                pixel_group=2,  # the images of a GPU
            )
        ),
    )


def _nyu(split):
    """480 x 640 pixels, depths in metres."""
    return dict(
        kind="tfds", name="nyu_depth_v2", split=split, data_dir="", image_key="image", text_keys=("depth",)
    )


def linear4(model: str) -> dict:
    """The linear head on four layers, evenly spaced. open: its learning rate is that of one layer."""
    config = full(model)
    config.update(name=f"depth_{model}_linear4")
    _objective(config).update(layers=MODELS[model]["layers"])
    return config


def dpt(model: str) -> dict:
    """DPT on four layers, by regression as published; with bins=256 it would have the linear heads' bins."""
    config, published = full(model), MODELS[model]
    config.update(name=f"depth_{model}_dpt")
    config["learning_rate"].update(peak=1e-4, start=1e-7, final=1e-12)
    head = dict(
        kind="dpt", readout=published["readout"], bins=0, min_depth=1e-3, max_depth=10.0, channels=256
    )
    if published["hidden"]:
        head.update(hidden=published["hidden"])
    _objective(config).update(head=head, layers=published["layers"])
    return config


def tuned(model: str) -> dict:
    """DPT with its encoder: the head alone at first, then both, the encoder at a tenth of the rate.

    open, all of it but the tenth, which the published configs state for an encoder that they freeze. For
    layer-wise decay the factor is dict(kind="layer_decay", decay=0.75).
    """
    config = dpt(model)
    config.update(
        name=f"depth_{model}_tuned",
        lr_multipliers=(("encoders/", dict(kind="steps", values=((0, 0.0), (1_600, 0.1)))),),
        ema=0.999,
    )
    return config


def _objective(config):
    return config["streams"]["scenes"]["objectives"]["depth"]


def demo() -> dict:
    """2,000 composited scenes of 80 pixels with synthetic depths; the encoder waits for the head, and then
    trains at its rate. With --config.lr_multipliers="(('encoders/', 0.0),)" it stays random: a baseline."""
    config = full("vitb14")
    config.update(
        name="depth_demo",
        total_steps=800,
        dtype="float32",
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        lr_multipliers=(("encoders/", dict(kind="steps", values=((0, 0.0), (50, 1.0)))),),
        log_every=20,
        eval_every=200,
        checkpoint=dict(every=200, keep=2, best="min:eval/depth/composited/abs_rel"),
        evals=dict(composited=dict(kind="depth", data=_composited("test", 80, 200), max_depth=12.0)),
    )
    config["learning_rate"].update(peak=2e-3, warmup_steps=100, start=0.0, final=1e-5)
    config["optimizer"].update(b2=0.98, clip_norm=1.0)
    _use_scenes(config, _composited("train", 80, 2_000), size=72, whole=80)
    _objective(config)["head"].update(max_depth=12.0)
    config["encoders"]["image"].update(
        patch=8, width=128, depth=4, heads=4, image_size=72, layer_scale=1.0, scan=False
    )
    return config


def tiny() -> dict:
    """The demo with a narrower encoder, small batches and few scenes, in seconds."""
    config = demo()
    config.update(name="depth_tiny", total_steps=10, log_every=2, eval_every=5)
    config["checkpoint"].update(every=5)
    config["learning_rate"].update(warmup_steps=2)
    config["lr_multipliers"] = (("encoders/", dict(kind="steps", values=((0, 0.0), (4, 1.0)))),)
    config["evals"]["composited"].update(data=_composited("test", 32, 8))
    config["streams"]["scenes"].update(batch_size=8)
    _use_scenes(config, _composited("train", 32, 32), size=32, whole=32)
    _objective(config)["head"].update(bins=16)
    config["encoders"]["image"].update(width=32, depth=2, heads=2, image_size=32)
    return config


def _composited(split, size, scenes):
    return dict(kind="composited_scenes", split=split, size=size, scenes=scenes)


def _use_scenes(config, source, size, whole):
    """The stream of this source, in crops of `size` of its `whole` pixels."""
    data = config["streams"]["scenes"]["data"]
    data.update(source=source, threads=2, cache_mib=64)
    data["fields"]["image"]["crop"].update(resize=whole, size=size)
    config["eval_transform"].update(size=size, resize=whole)
