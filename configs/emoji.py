"""The embedded emoji drawings as a demo's data: shared by the demos of all recipes."""

from collections.abc import Mapping

TRAINING_STYLES = ("noto", "noto-v1", "emojitwo", "fluent3d", "fluent-flat", "fxemoji")


# 6,803 drawings of 1,541 concepts.
_DRAWINGS = dict(kind="emoji", styles=TRAINING_STYLES, concepts="seen")
# The 627 drawings of one style, for tests.
_FEW = dict(kind="emoji", styles=("fxemoji",), concepts="seen")


def pairs(fields: dict, resize: int, size: int) -> dict:
    """The drawings with their names, as the data of a stream.

    One item per concept: two drawings of one concept in a batch would be false negatives of each other.

    Args:
      fields: those of the recipe, whose image keeps its device transforms.
      resize: the shorter side that a drawing is resized to.
      size: the side of a random crop of that.
    """
    crop = dict(kind="random_crop", resize=resize, size=size, resize_mode="crop")
    captions = dict(label=0.7, name=0.1, short_names=0.1, tags=0.1)
    return dict(
        source=dict(kind="emoji_concepts", styles=TRAINING_STYLES, concepts="seen"),
        fields=dict(image=fields["image"] | dict(crop=crop), text=dict(kind="text", captions=captions)),
        cache_mib=128,
        threads=2,
    )


def few_pairs(fields: dict, **sizes: int) -> dict:
    """The data of one style, for tests."""
    return pairs(fields, **sizes) | dict(source=dict(_FEW))


def mixture(fields: dict, resize: int, size: int, drawings: Mapping = _DRAWINGS) -> dict:
    """Drawings with their names as captions, and as many with one of 99 classes, the subcategories.

    Items are drawings, not concepts: a batch has several drawings of a class, and some of a concept.

    Args:
      fields: those of the recipe: image keeps its device transforms, text its prompts, and the others all.
      resize, size: as in `pairs`.
      drawings: the source of both.
    """
    data = pairs(fields, resize, size)
    captioned, labelled = (dict(source=dict(drawings), weight=1.0) for _ in range(2))
    del data["source"]
    data.update(fields=fields | data["fields"] | dict(text=fields["text"] | data["fields"]["text"]))
    return data | dict(
        sources=(captioned, labelled | dict(fields=dict(text=dict(captions={}, class_key="subcategory"))))
    )


def few_mixture(fields: dict, **sizes: int) -> dict:
    """The data of one style, for tests."""
    return mixture(fields, **sizes, drawings=_FEW)


def images(fields: dict, size: int, local_size: int, local_count: int) -> dict:
    """The same drawings without their names, in crops, as the data of a stream.

    fields: those of the recipe, whose crops keep their device transforms and their masks.
    """
    crops = dict(
        global_crops=dict(kind="random_resized_crop", size=size, scale=(0.4, 1.0), count=2),
        local_crops=dict(kind="random_resized_crop", size=local_size, scale=(0.1, 0.4), count=local_count),
    )
    changed = {name: fields[name] | dict(crop=crop) for name, crop in crops.items()}
    return dict(source=dict(_DRAWINGS), fields=changed, cache_mib=128, threads=2)


def few_images(fields: dict, **sizes: int) -> dict:
    """The data of one style, for tests."""
    return images(fields, **sizes) | dict(source=dict(_FEW))


# The number of categories, as labels.
CATEGORIES = 10


def crops(fields: dict, size: int) -> dict:
    """The same drawings with their categories, a random crop of each, as the data of a stream.

    fields: those of the recipe, whose crops keep their device transforms.
    """
    crop = dict(kind="random_resized_crop", size=size, scale=(0.4, 1.0), count=1)
    changed = dict(crops=fields["crops"] | dict(crop=crop), label=dict(kind="label", key="category"))
    return dict(source=dict(_DRAWINGS), fields=changed, cache_mib=128, threads=2)


def few_crops(fields: dict, size: int) -> dict:
    """The data of one style, for tests."""
    return crops(fields, size) | dict(source=dict(_FEW))


def evals(styles=("twemoji", "openmoji"), training_styles=TRAINING_STYLES) -> dict:
    """Zero-shot classification and retrieval in unseen styles."""
    return dict(emoji=dict(kind="emoji", styles=styles, training_styles=training_styles))


def neighbours(styles=("twemoji", "openmoji"), training_styles=TRAINING_STYLES) -> dict:
    """Categories of drawings in unseen styles, all of them and those of unseen concepts, by the nearest
    drawings of the training styles."""
    common = dict(
        kind="knn",
        train=dict(kind="emoji", styles=training_styles, concepts="seen"),
        label="category",
        ks=(10, 20),
        pixels=True,
    )
    return {name: dict(common, test=source) for name, source in _whole_and_unseen(styles).items()}


def classified(styles=("twemoji", "openmoji")) -> dict:
    """Categories of the same drawings by a trained classifier."""
    common = dict(kind="classification", label="category")
    return {name: dict(common, data=source) for name, source in _whole_and_unseen(styles).items()}


def _whole_and_unseen(styles):
    sets = dict.fromkeys(styles, "all") | {f"{style}_unseen": "unseen" for style in styles}
    return {
        name: dict(kind="emoji", styles=(name.removesuffix("_unseen"),), concepts=concepts)
        for name, concepts in sets.items()
    }


def heads(style="twemoji", training_styles=TRAINING_STYLES, blocks=(1, 4)) -> dict:
    """Categories of drawings in an unseen style by linear heads, trained on the drawings as they are."""
    sweep = dict(
        kind="linear_sweep",
        train=dict(kind="emoji", styles=training_styles, concepts="seen"),
        test=dict(kind="emoji", styles=(style,)),
        label="category",
        # So few steps need higher learning rates than 12,500.
        rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        blocks=blocks,
        steps=500,
        batch_size=256,
        augment=False,
    )
    return {f"{style}_heads": sweep}


# The embedded WordPiece vocabulary; [SEP] ends a text.
TOKENIZER = dict(kind="wordpiece", vocabulary="emoji", size=4096, length=12)
SEP_ID = 3


def pairs_run() -> dict:
    """A demo's changes to a recipe on `pairs`: a short run in float32, evaluated on unseen styles."""
    return dict(
        total_steps=1300,
        dtype="float32",
        remat="none",
        requires=dict(weights=False, preset_here="tiny"),
        tokenizer=dict(TOKENIZER),
        ema=dict(kind="warmup", momentum=0.99),
        log_every=20,
        eval_every=325,
        checkpoint=dict(every=325, keep=2, best="eval/zero_shot/twemoji/top1"),
        evals=evals(),
    )


def images_run() -> dict:
    """A demo's changes to a recipe on `images`: a short run in float32, evaluated on unseen styles."""
    return dict(
        total_steps=400,
        dtype="float32",
        remat="none",
        mesh=dict(data=-1, fsdp=1, tensor=1),
        requires=dict(weights=False, preset_here="tiny"),
        # In so few steps a slower teacher would remain the random network that it starts as.
        ema=dict(kind="cosine", peak=0.95, warmup_steps=0, start=0.0, final=0.99),
        lr_multipliers=(),
        log_every=20,
        eval_every=200,
        checkpoint=dict(every=100, keep=2, best=""),
        evals=neighbours() | heads(),
    )


def few_images_run() -> dict:
    """The same for `tiny`: ten steps on `few_images`."""
    return images_run() | dict(
        total_steps=10,
        log_every=2,
        eval_every=5,
        checkpoint=dict(every=5, keep=2, best=""),
        evals=neighbours(("fxemoji",), ("fxemoji",)),
    )
