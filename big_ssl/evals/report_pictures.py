"""The report's pictures of what a model sees: attention, patches, and which pictures it takes for alike."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from big_ssl.evals import plots
from big_ssl.models import vit

# So many patches a side make a map that one can read; pictures are enlarged for it, up to four times.
_FINE, _LARGEST = 24, 4
_HEADS = 12


class Picture(NamedTuple):
    """A section of the page: name, of its file and its place; text: what is shown, and how to read it."""

    name: str
    title: str
    text: str
    figure: Figure


class Gallery(NamedTuple):
    """Pictures with their nearest others.

    name: of the set; pictures: Q uint8[S, S, 3] and labels: their classes; neighbours: for each the same of
    the N nearest, nearest first; cosines: float32[Q, N]; known: among how many they were found.
    """

    name: str
    pictures: Sequence[np.ndarray]
    labels: Sequence[str]
    neighbours: Sequence[tuple[Sequence[np.ndarray], Sequence[str]]]
    cosines: np.ndarray
    known: int


def patches(model: vit.ViT, variables, images) -> Any:
    """To look inside a tower with: float32[B, N, D], after the final norm. images: float32[B, S, S, 3]."""
    outputs: Any = model.apply(variables, images)
    return outputs["patches"].astype(jnp.float32)


def class_attention(model: vit.ViT, variables, images):
    """To look inside a tower with: float32[B, heads, N], the share of each patch in what the class token
    attends to in the last layer; without what it gives to itself and to registers."""
    return vit.last_attention(model, variables, images)[:, :, 0, 1 + model.registers :]


def inside(embedder, pictures: Callable[[int], np.ndarray]) -> list[Picture]:
    """The attention and the patches of a ViT with a class token.

    pictures: a factor -> uint8[K, S, S, 3], the same pictures in so many times the pixels a side that the
    tower was trained at.
    """
    usual = pictures(1)
    grid = _side(embedder.inside(patches, usual, size=len(usual)))
    factor = min(_LARGEST, -(-_FINE // grid))
    large = pictures(factor)
    features, attention = (
        embedder.inside(look, large, size=len(large)) for look in (patches, class_attention)
    )
    size = f"{large.shape[1]} × {large.shape[1]} pixels"
    if factor > 1:
        size += f", {factor} times the side that it was trained at, for finer maps"
    return [_attention(large, attention, size), _components(large, features, size)]


def _attention(pictures, attention, size):
    side, heads = _side(attention.swapaxes(1, 2)), attention.shape[1]
    shown = min(heads, _HEADS)
    rows = [
        [plots.Tile(picture), *(plots.Tile(one.reshape(side, side)) for one in maps[:shown])]
        for picture, maps in zip(pictures, attention, strict=True)
    ]
    titles = ["picture", *(f"head {i + 1}" for i in range(shown))]
    some = f" The first {shown} of {heads} heads." if shown < heads else ""
    text = (
        "In the last layer the class token, which stands for the whole picture, gathers what it needs from "
        "the patches. Each column is one of the layer's heads: the brighter a patch, the more that head "
        f"looks at it; each map has its own scale.{some} Outlines alone mean little: a network that has "
        "learnt nothing shows them too, since its patches differ in colour. The pictures stand at even "
        f"distances through their set, whatever the maps look like; the network sees them in {size}."
    )
    return Picture("attention", "Where it looks", text, plots.tiles(rows, titles, apart=True))


def _components(pictures, features, size):
    side, (colours, shares) = _side(features), principal_colours(features)
    colours = colours.reshape(len(pictures), side, side, 3)
    first, second, third = (f"{share:.0%}" for share in shares)
    text = (
        "Every patch of a picture gets a vector. Over the patches of all these pictures together, their "
        "first three principal components are shown as red, green and blue: patches of one colour mean the "
        f"same to the network, in different pictures too. They hold {first}, {second} and {third} of the "
        f"variance. The network sees the pictures in {size}."
    )
    rows = [[plots.Tile(x) for x in pictures], [plots.Tile(x) for x in colours]]
    return Picture("patches", "What its patches mean", text, plots.tiles(rows))


def principal_colours(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(uint8[K, N, 3], float[3]): the first three principal components of float32[K, N, D] as colours, all
    pictures on one scale, and their shares of the variance.

    Of each component the range between the first and the last hundredth is that of the colour, and the sign
    that which makes its largest loading positive.
    """
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    rows -= rows.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    values, vectors = values[::-1][:3] / max(values.sum(), 1e-12), vectors[:, ::-1][:, :3]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(0), np.arange(3)])
    found = rows @ vectors
    low, high = np.percentile(found, (1, 99), axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.round(255 * scaled).astype(np.uint8).reshape(*features.shape[:2], 3), values


def gallery(found: Gallery) -> Picture:
    """Each picture of a set with its nearest training pictures, the wrong ones framed in orange."""
    rows = []
    for picture, label, (others, names), cosines in zip(
        found.pictures, found.labels, found.neighbours, found.cosines, strict=True
    ):
        tiles = [plots.Tile(picture, _short(label))]
        for other, name, cosine in zip(others, names, cosines, strict=True):
            colour = plots.RIGHT if name == label else plots.WRONG
            tiles.append(plots.Tile(other, f"{_short(name)}\n{cosine:.3f}", colour))
        rows.append(tiles)
    names = [names for _, names in found.neighbours]
    right = sum(name == label for label, own in zip(found.labels, names, strict=True) for name in own)
    text = (
        f"Each row begins with a picture of {found.name.replace('_', ' ')}, after which come the nearest of "
        f"the {found.known:,} training pictures, nearest first, with their class and the cosine similarity "
        "(1 is identical). Framed in green: of the same class; in orange: of another. Of these "
        f"{sum(map(len, names))} neighbours {right} are of the same class. The pictures stand at even "
        "distances through the set, failures included."
    )
    title = f"Its nearest pictures, {found.name.replace('_', ' ')}"
    return Picture(f"neighbours_{found.name}", title, text, plots.tiles(rows, apart=True))


def _side(features):
    """Of [B, N, ...] for square pictures."""
    return round(features.shape[1] ** 0.5)


def _short(name):
    return name if len(name) <= 16 else name[:15] + "…"
