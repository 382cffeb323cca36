"""ALIGN's image encoder on ImageNet (Jia et al. 2021, arXiv 2102.05918, section 5.3), in two runs.

    python -m big_ssl.main --config=configs/finetune_align_imagenet.py:l2,frozen --workdir=runs/align_frozen \
        --config.init_from.path=runs/align --config.streams.images.data.source.data_dir=gs://bucket/tfds \
        --config.evals.imagenet.data.data_dir=gs://bucket/tfds
    python -m big_ssl.main --config=configs/finetune_align_imagenet.py:l2 --workdir=runs/align_ft \
        --config.init_from.path=runs/align_frozen [the same two]
    python -m big_ssl.main --config=configs/finetune_align_imagenet.py:demo --workdir=runs/align_ft_demo

Models: `l2` (the default), of configs/align_l2.py; `base`, of configs/align_base.py, whose weights
`python -m big_ssl.convert --from=hf_align` makes. Presets: `frozen` is the first run, which trains a
classifier on the frozen encoder; without a preset it is the second run, which trains all layers on larger
images; `demo` learns the ten categories of the embedded emoji drawings, in minutes on two CPU cores, from
scratch or from runs/align_demo; `tiny` is the demo in seconds, for tests; `rehearsal` is for
launch/rehearse.sh.

Values are the paper's. The encoders are those of pre-training, and so are the values marked `# open`.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import emoji, imagenet
from configs.rehearsal import shrink

MODELS: dict[str, dict[str, Any]] = {
    "l2": dict(encoder=dict(width=4.3, depth=5.3), fsdp=16),
    "base": dict(encoder=dict(width=2.0, depth=3.1, padding="fixed"), fsdp=1),
}
_EPOCHS = 100


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg: `[model][,preset][,key=value ...]`, see big_ssl/recipe.py."""
    presets: dict[str, Callable[..., dict]] = {"": full, "frozen": frozen, "demo": demo, "tiny": tiny}
    presets["rehearsal"] = lambda model: shrink(full(model))
    return recipe.choose("finetune_align_imagenet", arg, presets, MODELS)


def full(model: str) -> dict:
    """All layers, from the result of `frozen`; the encoder at a tenth of the classifier's learning rate."""
    return dict(
        name=f"align_{model}_imagenet",
        seed=0,
        total_steps=_EPOCHS * imagenet.EPOCH,
        dtype="bfloat16",
        streams=dict(images=_images(size=475)),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        eval_transform=_eval_transform(size=600),
        encoders=dict(
            image=dict(
                kind="efficientnet",
                **MODELS[model]["encoder"],
                strides=(1, 2, 2, 2, 1, 2, 1),
                drop_connect=0.2,  # open
                bn_group=16,  # open
                bn_momentum=0.99,  # open
                scan=True,
            )
        ),
        optimizer=dict(
            name="sgd",
            b1=0.9,
            b2=0.999,
            eps=1e-6,
            weight_decay=0.0,
            weight_decay_exclude=(),
            trust_ratio_exclude=(),
            clip_norm=0.0,
            clip_scope="all",
        ),
        learning_rate=_decayed(0.01),
        lr_multipliers=(("encoders/", 0.1),),
        ema=0.0,
        init_from=dict(path="", exclude=(), remap=()),
        # The options below do not change what is computed.
        mesh=dict(data=-1, fsdp=MODELS[model]["fsdp"], tensor=1),
        mesh_rules=(),
        sharding=(),
        grad_accum=1,
        remat="full",
        requires=dict(weights=True, preset_here="demo"),
        profile=0,
        log_every=100,
        eval_every=imagenet.EPOCH,
        checkpoint=dict(every=imagenet.EPOCH, keep=2, best=imagenet.BEST),
        failure_limits=dict(
            skipped_in_a_row=10,
            replaced_fraction=0.05,
            window_examples=10_000,
            evaluator_failures_in_a_row=3,
        ),
        evals=imagenet.evals(),
        predictors=dict(),
    )


def _eval_transform(size):
    """The central 0.875 of an image, `size` pixels wide."""
    return dict(
        size=size,
        resize=round(size / 0.875),
        resize_mode="crop",
        filter="bicubic",
        mean=(0.5,),
        std=(0.5,),
    )


def _images(size):
    """Random crops of `size` pixels."""
    return dict(
        batch_size=imagenet.BATCH,
        data=imagenet.data(size=size, mean=(0.5,), std=(0.5,), flip=True),  # open: the scaling
        objectives=dict(
            classification=dict(
                kind="classification",
                weight=1.0,
                classes=imagenet.CLASSES,
                view="crops",
                loss="softmax",
            )
        ),
    )


def frozen(model: str) -> dict:
    """The classifier alone, on smaller images."""
    config = full(model)
    config.update(
        name=f"align_{model}_imagenet_frozen",
        init_from=dict(path="", exclude=("heads/",), remap=()),
        learning_rate=_decayed(0.1),
        lr_multipliers=(("encoders/", 0.0),),
    )
    config["streams"].update(images=_images(size=289))
    config["eval_transform"] = _eval_transform(size=360)
    return config


def _decayed(rate):
    """Multiplied by 0.2 every 30 epochs."""
    values = tuple((i * 30 * imagenet.EPOCH, rate * 0.2**i) for i in range(4))
    return dict(kind="steps", values=values)


def demo() -> dict:
    """Ten categories of 6,803 emoji drawings, with the image encoder of configs/align_l2.py:demo."""
    config = full("l2")
    config.update(
        name="align_imagenet_demo",
        total_steps=400,
        dtype="float32",
        remat="none",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        requires=dict(weights=False, preset_here="tiny"),
        init_from=dict(path="", exclude=("heads/",), remap=()),
        learning_rate=dict(kind="steps", values=((0, 0.05), (300, 0.01))),
        lr_multipliers=(),  # from scratch all layers learn alike
        log_every=20,
        eval_every=100,
        checkpoint=dict(every=100, keep=2, best="eval/classification/twemoji/top1"),
        evals=emoji.classified(),
    )
    images = config["streams"]["images"]
    images.update(batch_size=128, data=emoji.crops(images["data"]["fields"], size=32))
    images["objectives"]["classification"].update(classes=emoji.CATEGORIES)
    config["eval_transform"].update(size=32, resize=32)
    config["encoders"]["image"].update(
        width=0.75, depth=1.0, drop_connect=0.0, bn_group=0, bn_momentum=0.9, scan=False
    )
    return config


def tiny() -> dict:
    """The demo with a narrower encoder and small batches, in seconds."""
    config = demo()
    config.update(name="align_imagenet_tiny", total_steps=10, log_every=2, eval_every=5)
    config.update(evals=emoji.classified(("fxemoji",)))
    config["checkpoint"].update(every=5, best="eval/classification/fxemoji/top1")
    config["learning_rate"].update(values=((0, 0.05), (8, 0.01)))
    images = config["streams"]["images"]
    images.update(batch_size=16, data=emoji.few_crops(images["data"]["fields"], size=16))
    config["eval_transform"].update(size=16, resize=16)
    config["encoders"]["image"].update(width=0.25, depth=0.3)
    return config
