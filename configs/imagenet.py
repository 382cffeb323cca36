"""ImageNet-1k with its labels: constants and data that the recipes which fine-tune on it share."""

from big_ssl import recipe

CLASSES, BATCH = 1_000, 1_024
EPOCH = recipe.epochs(1, 1_281_167, BATCH)  # steps
PIXELS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
BEST = "eval/classification/imagenet/top1"


def data(size: int, **transforms) -> dict:
    """The data of a stream: random crops of `size` pixels with their labels.

    transforms: what happens to the crops on the device, see data/fields/image.py.
    """
    # The usual range of areas (Szegedy et al. 2015, arXiv 1409.4842).
    crop = dict(kind="random_resized_crop", size=size, scale=(0.08, 1.0), count=1)
    return dict(
        source=_split("train"),
        fields=dict(
            crops=dict(kind="image", crop=crop, **transforms),
            label=dict(kind="label", key="label"),
        ),
        cache_mib=0,
        threads=64,
    )


def evals() -> dict:
    """The trained classifier on the validation images."""
    return dict(imagenet=dict(kind="classification", data=_split("validation"), label="label"))


def _split(name):
    return dict(
        kind="tfds", name="imagenet2012", split=name, data_dir="", image_key="image", text_keys=("label",)
    )
