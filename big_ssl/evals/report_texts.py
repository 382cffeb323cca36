"""The report's galleries of a model that embeds texts: a scene's pictures by text, names by picture."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_ssl.evals import plots

# What the page says of an evaluation set whose name it knows; it claims nothing of others.
NOTES = {
    "twemoji": "flat colour drawings, in a style that was kept out of training",
    "openmoji": "outlined line drawings, in a style that was kept out of training: the harder one",
}
_NEAREST_IMAGES, _NEAREST_NAMES = 8, 5
_SHOWN_IMAGES, _SHOWN_IMAGES_IN_SHORT, _QUERIES_IN_SHORT, _HEAT_MAP_SIDE = 12, 6, 4, 16


@dataclasses.dataclass(frozen=True)
class Scene:
    """One evaluation set with its embeddings.

    images: uint8[N, H, W, 3]; names: M strings; labels: int[N] into names; image_embeddings: float32[N, D]
    and text_embeddings: float32[M, D], both L2-normalised; unseen: bool[M], names whose concept was held out
    of training.
    """

    images: np.ndarray
    names: Sequence[str]
    labels: np.ndarray
    image_embeddings: np.ndarray
    text_embeddings: np.ndarray
    unseen: np.ndarray

    def __post_init__(self):
        images, names = len(self.images), len(self.names)
        if not images == len(self.labels) == len(self.image_embeddings):
            raise ValueError("images, labels and image_embeddings of a scene differ in number")
        if not names == len(self.unseen) == len(self.text_embeddings):
            raise ValueError("names, unseen and text_embeddings of a scene differ in number")


def nearest_images(scene: Scene, texts: np.ndarray, count: int) -> np.ndarray:
    """Indices int[Q, count] of the images nearest to texts: float32[Q, D], nearest first."""
    return _largest(_float(texts) @ _float(scene.image_embeddings).T, count)


def nearest_names(scene: Scene, images: Sequence[int], count: int) -> np.ndarray:
    """Indices int[K, count] of the names nearest to the K images with these indices, nearest first."""
    return _largest(_name_similarities(scene, images), count)


def spread_images(scene: Scene, count: int) -> list[int]:
    """Up to `count` image indices, half of them of unseen concepts where there are any.

    Evenly spaced through the set in its own order, so the choice depends on neither the embeddings nor luck.
    """
    unseen = np.asarray(scene.unseen, bool)[np.asarray(scene.labels)]
    hidden = spread(np.flatnonzero(unseen), count // 2)
    known = spread(np.flatnonzero(~unseen), count - len(hidden))
    return [int(index) for index in [*known, *hidden]]


def scene_view(
    name: str, scene: Scene, queries: Sequence[str], texts: np.ndarray | None, short: bool
) -> dict[str, Any]:
    """What the template needs of one scene: its sizes, galleries and, unless in short, the heat map."""
    shown = _QUERIES_IN_SHORT if short else len(queries)
    cards = _image_to_text(scene, spread_images(scene, _SHOWN_IMAGES_IN_SHORT if short else _SHOWN_IMAGES))
    return {
        "name": name,
        "note": NOTES.get(name),
        "short": short,
        "images": len(scene.images),
        "names": len(scene.names),
        "unseen": int(np.sum(scene.unseen)),
        "queries": _text_to_image(scene, queries[:shown], texts[:shown]) if texts is not None else [],
        "cards": cards,
        "right": sum(card["rank"] == 1 for card in cards),
        "hidden": sum(card["unseen"] for card in cards),
        "heat_map": None if short else _heat_map(scene),
    }


def _text_to_image(scene: Scene, queries: Sequence[str], texts: np.ndarray) -> list[dict[str, Any]]:
    similarities = texts @ _float(scene.image_embeddings).T
    nearest = nearest_images(scene, texts, _NEAREST_IMAGES)
    return [
        {"query": query, "images": [_thumbnail(scene, i) | {"similarity": float(row[i])} for i in chosen]}
        for query, row, chosen in zip(queries, similarities, nearest, strict=True)
    ]


def _image_to_text(scene: Scene, images: list[int]) -> list[dict[str, Any]]:
    """A card an image: its nearest names and the rank of the true one, counted from 1."""
    similarities = _name_similarities(scene, images)
    orders = nearest_names(scene, images, len(scene.names))
    cards = []
    for image, row, order in zip(images, similarities, orders, strict=True):
        label = int(scene.labels[image])
        guesses = [_guess(scene, name, row, right=name == label) for name in order[:_NEAREST_NAMES]]
        rank = int(np.flatnonzero(order == label)[0]) + 1
        card = {"guesses": guesses, "rank": rank, "true": _guess(scene, label, row, right=True)}
        cards.append(_thumbnail(scene, image) | card)
    return cards


def _guess(scene: Scene, name: int, similarities: np.ndarray, right: bool) -> dict[str, Any]:
    unseen = bool(scene.unseen[name])
    return {
        "name": scene.names[name],
        "similarity": float(similarities[name]),
        "right": right,
        "unseen": unseen,
    }


def _thumbnail(scene: Scene, image: int) -> dict[str, Any]:
    label = int(scene.labels[image])
    return {
        "index": int(image),
        "uri": plots.image_uri(scene.images[image]),
        "name": scene.names[label],
        "unseen": bool(scene.unseen[label]),
    }


def _heat_map(scene: Scene) -> dict[str, Any]:
    """16 names spread evenly over those that have an image, with the first image of each."""
    labels, first = np.unique(np.asarray(scene.labels), return_index=True)
    chosen = spread(np.arange(len(labels)), _HEAT_MAP_SIDE)
    labels, images = labels[chosen], first[chosen]
    similarities = _name_similarities(scene, images)[:, labels]
    names, unseen = [scene.names[i] for i in labels], np.asarray(scene.unseen)[labels]
    figure = plots.heat_map(np.asarray(scene.images)[images], names, similarities, unseen)
    right = int(np.sum(np.argmax(similarities, axis=1) == np.arange(len(labels))))
    return {"uri": plots.figure_uri(figure, tight=True), "count": len(labels), "right": right}


def _name_similarities(scene: Scene, images: Sequence[int]) -> np.ndarray:
    return _float(scene.image_embeddings)[np.asarray(images, int)] @ _float(scene.text_embeddings).T


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    # A stable sort: ties always fall to the lower index, so the page is the same each time.
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the values, from the middles of as many equal stretches."""
    count = min(count, len(values))
    return values[((np.arange(count) + 0.5) * len(values) / max(count, 1)).astype(int)]


def unit(vectors: np.ndarray) -> np.ndarray:
    # An empty text may encode to the zero vector, which stays zero instead of becoming NaN.
    vectors = _float(vectors)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _float(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)
