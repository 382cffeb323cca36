"""The report's sections about an image encoder: attention, patches, nearest neighbours."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from big_ssl.data import bands, preprocessing
from big_ssl.evals import plots
from big_ssl.evals.layer_features import class_attention
from big_ssl.evals.report_sections import EvalSection

# A map with this many patches a side is readable; images are enlarged for it, up to four times.
_FINE, _LARGEST = 24, 4
_HEADS = 12
# Images whose attention and patches are shown.
_IMAGES = 6


class NearestImages(NamedTuple):
    """Images with their nearest neighbours.

    name: of the set; images: Q uint8[S, S, 3]; labels: their classes; neighbours: for each image (images,
    labels) of the N nearest, nearest first; cosines: float32[Q, N]; candidates: how many training images.
    """

    name: str
    images: Sequence[np.ndarray]
    labels: Sequence[str]
    neighbours: Sequence[tuple[Sequence[np.ndarray], Sequence[str]]]
    cosines: np.ndarray
    candidates: int


def encoder_sections(predictor, images: Callable[[int, Callable], np.ndarray]) -> list[EvalSection]:
    """The attention and the patches of a ViT with a class token.

    images: (count, preprocess) -> uint8[count, S, S, C], the same images for every preprocess.
    """

    def enlarged(factor):
        return images(_IMAGES, preprocessing.enlarged(predictor.image_config, factor))

    trained_size = enlarged(1)
    grid = _side(predictor.patch_features(trained_size, resize=False))
    factor = min(_LARGEST, -(-_FINE // grid))
    large = enlarged(factor)
    features = predictor.patch_features(large, resize=False)
    attention = predictor.apply(class_attention, large, size=len(large))
    size = f"{large.shape[1]} × {large.shape[1]} pixels"
    if factor > 1:
        size += f", {factor} times the side of training, for finer maps"
    return [_attention(large, attention, size), _components(large, features, size)]


def _attention(images, attention, size):
    heads = attention.shape[1]
    shown = min(heads, _HEADS)
    rows = [
        [plots.Tile(bands.visible(image)), *(plots.Tile(one) for one in maps[:shown])]
        for image, maps in zip(images, attention, strict=True)
    ]
    titles = ["image", *(f"head {i + 1}" for i in range(shown))]
    some = f" The first {shown} of {heads} heads." if shown < heads else ""
    text = (
        "In the last layer the class token, which represents the whole image, gathers information from the "
        "patches. Each column is one of the layer's heads: the brighter a patch, the more that head attends "
        f"to it; each map has its own scale.{some} Outlines alone mean little: an untrained network shows "
        "them too, since its patches differ in colour. The images are evenly spaced through the set, "
        f"whatever their maps look like; their size is {size}."
    )
    return EvalSection("attention", "Attention", text, plots.tiles(rows, titles, apart=True))


def _components(images, features, size):
    side, (colours, fractions) = _side(features), principal_colours(features)
    colours = colours.reshape(len(images), side, side, 3)
    first, second, third = (f"{fraction:.0%}" for fraction in fractions)
    text = (
        "Every patch of an image has a feature vector. Red, green and blue are the first three principal "
        "components over the patches of all these images: patches of one colour have similar features, in "
        f"different images too. The components explain {first}, {second} and {third} of the variance. The "
        f"image size is {size}."
    )
    rows = [[plots.Tile(bands.visible(x)) for x in images], [plots.Tile(x) for x in colours]]
    return EvalSection("patches", "Patch features", text, plots.tiles(rows))


def principal_colours(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[K, N, 3], float[3]): the first three principal components of float32[K, N, D] as colours, all
    images on one scale, and their fractions of the variance.

    The colour's range is that between a component's first and last percentile; its sign makes the largest
    loading positive.
    """
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    rows -= rows.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    values, vectors = values[::-1][:3] / max(values.sum(), 1e-12), vectors[:, ::-1][:, :3]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(0), np.arange(3)])
    components = rows @ vectors
    low, high = np.percentile(components, (1, 99), axis=0)
    scaled = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.round(255 * scaled).astype(np.uint8).reshape(*features.shape[:2], 3), values


def neighbour_section(nearest: NearestImages) -> EvalSection:
    """Each image of a set with its nearest training images, the wrong ones framed in orange."""
    rows = []
    for image, label, (others, names), cosines in zip(
        nearest.images, nearest.labels, nearest.neighbours, nearest.cosines, strict=True
    ):
        tiles = [plots.Tile(image, _short(label))]
        for other, name, cosine in zip(others, names, cosines, strict=True):
            colour = plots.RIGHT if name == label else plots.WRONG
            tiles.append(plots.Tile(other, f"{_short(name)}\n{cosine:.3f}", colour))
        rows.append(tiles)
    same_class = [
        name == label
        for label, (_, names) in zip(nearest.labels, nearest.neighbours, strict=True)
        for name in names
    ]
    dataset = nearest.name.replace("_", " ")
    text = (
        f"Each row begins with an image of {dataset}. The nearest of the {nearest.candidates:,} training "
        "images follow, nearest first, with their class and the cosine similarity (1 is identical). Green "
        f"frame: the same class; orange: another class. {sum(same_class)} of these "
        f"{len(same_class)} neighbours have the same class. The images are evenly spaced through the set, "
        "failures included."
    )
    return EvalSection(
        f"neighbours_{nearest.name}", f"Nearest images, {dataset}", text, plots.tiles(rows, apart=True)
    )


def _side(features):
    """The patches a side of features [B, N, ...] of square images."""
    return round(features.shape[1] ** 0.5)


def _short(name):
    return name if len(name) <= 16 else name[:15] + "…"
