"""ALIGN's image tower on ImageNet (Jia et al. 2021, arXiv 2102.05918, section 5.3), in two runs.

    python -m big_ssl.main --config=configs/align_imagenet.py:frozen --workdir=runs/align_frozen \
        --config.init_from.path=runs/align --config.streams.images.data.source.data_dir=gs://bucket/tfds \
        --config.evals.imagenet.data.data_dir=gs://bucket/tfds
    python -m big_ssl.main --config=configs/align_imagenet.py --workdir=runs/align_ft \
        --config.init_from.path=runs/align_frozen [the same two]
    python -m big_ssl.main --config=configs/align_imagenet.py:demo --workdir=runs/align_ft_demo

Presets: `frozen`, the first run, which trains a classifier on the frozen tower; none, the second, which goes
on with all of it and larger pictures; `base_frozen` and `base`, the same of COYO's model, whose weights
`python -m big_ssl.convert --from=hf_align` makes; `demo`, the ten categories of the embedded emoji drawings,
minutes on two CPU cores, from scratch or from runs/align_demo; `tiny`, seconds, for tests.
"""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import align, emoji, imagenet
from configs.rehearsal import rehearsal

_EPOCHS = 100


def get_config(arg: str = "") -> ConfigDict:
    """The recipe, one of its presets, or changes to it; see big_ssl/recipe.py."""
    presets: dict[str, Callable[[], dict]] = {
        "": functools.partial(full, "l2"),
        "frozen": functools.partial(frozen, "l2"),
        "base": functools.partial(full, "base"),
        "base_frozen": functools.partial(frozen, "base"),
        "demo": demo,
        "tiny": tiny,
        "rehearsal": lambda: rehearsal(full("l2")),
    }
    return recipe.choose("align_imagenet", arg, presets)


def full(model: str) -> dict:
    """All layers, from what `frozen` has trained, the tower ten times slower than the classifier."""
    config = align.full(model)
    config.update(
        name=f"align_{model}_imagenet",
        total_steps=_EPOCHS * imagenet.EPOCH,
        requires=dict(weights=True, preset_here="demo"),
        tokenizer=dict(kind="wordpiece", vocabulary="", size=1, length=1),  # there are no texts
        streams=_streams(train=475, evaluate=600),
        views=dict(crops=dict(config["views"]["image"]), image=config["views"]["image"] | dict(flip=False)),
        encoders=dict(image=config["encoders"]["image"]),
        learning_rate=_falling(0.01),
        rates=(("encoders/", 0.1),),
        eval_every=imagenet.EPOCH,
        checkpoint=dict(every=imagenet.EPOCH, keep=2, best=imagenet.BEST),
        evals=imagenet.evals(),
    )
    config["optimizer"].update(name="sgd", b1=0.9, weight_decay=0.0, decay_exclude=(), adapt_exclude=())
    return config


def frozen(model: str) -> dict:
    """The classifier alone, on smaller pictures."""
    config = full(model)
    config.update(
        name=f"align_{model}_imagenet_frozen",
        init_from=dict(path="", skip=("heads/",), copy=()),
        streams=_streams(train=289, evaluate=360),
        learning_rate=_falling(0.1),
        rates=(("encoders/", 0.0),),
    )
    return config


def _streams(train, evaluate):
    classification = dict(
        kind="classification",
        weight=1.0,
        classes=imagenet.CLASSES,
        label="label",
        view="crops",
        loss="softmax",
    )
    # A central crop with the ratio 0.875.
    data = imagenet.data(size=train, resize=round(evaluate / 0.875), crop=evaluate)
    return dict(
        images=dict(batch_size=imagenet.BATCH, data=data, objectives=dict(classification=classification))
    )


def _falling(rate):
    """Times 0.2 every 30 epochs."""
    starts = range(0, _EPOCHS, 30)
    return dict(
        kind="steps", values=tuple((start * imagenet.EPOCH, rate * 0.2**i) for i, start in enumerate(starts))
    )


def demo() -> dict:
    """Ten categories of 6,803 emoji drawings, by the image tower of configs/align_l2.py:demo."""
    config, pretraining = full("l2"), align.demo("l2")
    config.update(
        name="align_imagenet_demo",
        total_steps=400,
        dtype="float32",
        remat="none",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        requires=dict(weights=False, preset_here="tiny"),
        init_from=dict(path="", skip=("heads/",), copy=()),
        encoders=dict(image=pretraining["encoders"]["image"]),
        learning_rate=dict(kind="steps", values=((0, 0.05), (300, 0.01))),
        rates=(),  # from scratch all is to learn
        log_every=20,
        eval_every=100,
        checkpoint=dict(every=100, keep=2, best="eval/classification/twemoji/top1"),
        evals=emoji.classified(),
    )
    images = config["streams"]["images"]
    images.update(batch_size=128, data=emoji.crops(size=32))
    images["objectives"]["classification"].update(classes=emoji.CATEGORIES, label="category")
    return config


def tiny() -> dict:
    """The demo's code path in seconds."""
    config = demo()
    config.update(name="align_imagenet_tiny", total_steps=10, log_every=2, eval_every=5)
    config.update(encoders=dict(image=align.tiny("l2")["encoders"]["image"]))
    config.update(evals=emoji.classified(("fxemoji",)))
    config["checkpoint"].update(every=5, best="eval/classification/fxemoji/top1")
    config["learning_rate"].update(values=((0, 0.05), (8, 0.01)))
    config["streams"]["images"].update(batch_size=16, data=emoji.few_crops(size=16))
    return config
