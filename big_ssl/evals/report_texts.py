"""The report's retrieval examples: images for a text, names for an image."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_ssl.evals import page, plots
from big_ssl.evals.report_sections import EvalSection

_NEAREST_IMAGES, _NEAREST_NAMES = 8, 5
_SHOWN_IMAGES, _SHOWN_IMAGES_IN_SHORT, _QUERIES_IN_SHORT, _HEAT_MAP_SIDE = 12, 6, 4, 16


@dataclasses.dataclass(frozen=True)
class RetrievalExamples:
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
            raise ValueError("images, labels and image_embeddings of retrieval examples differ in number")
        if not names == len(self.unseen) == len(self.text_embeddings):
            raise ValueError("names, unseen and text_embeddings of retrieval examples differ in number")


def retrieval_sections(
    examples_by_set: Mapping[str, RetrievalExamples], queries: Sequence[str], texts: np.ndarray
) -> list[EvalSection]:
    """Sections that show retrieval in both directions.

    Args:
      examples_by_set: {set: its examples}; all sets but the first are shown in short.
      queries: Q free texts.
      texts: float32[Q, D], their embeddings, of any length.

    Returns:
      Sections made by the macros of templates/retrieval_examples.html.
    """
    texts, sections = unit(texts), []
    for i, (name, examples) in enumerate(examples_by_set.items()):
        view = _view(name, examples, queries, texts, short=i > 0)
        sections += [_in_short(view)] if i else _in_full(view)
    return sections


def _in_full(view):
    name, parts = view["name"], page.macros("retrieval_examples.html")
    sections = []
    if view["queries"]:
        html = parts.from_text_to_images(view)
        sections.append(EvalSection(f"{name}-text-to-image", "From a text to images", html=html))
    html = parts.from_image_to_names(view)
    sections.append(EvalSection(f"{name}-image-to-text", "From an image to names", html=html))
    count = view["heat_map"]["count"]
    title = f"{count} images against their names"
    return [*sections, EvalSection(f"{name}-similarity", title, html=parts.similarities(view))]


def _in_short(view):
    parts = page.macros("retrieval_examples.html")
    return EvalSection(f"{view['name']}-examples", f"The same on {view['name']}", html=parts.in_short(view))


def nearest_images(examples: RetrievalExamples, texts: np.ndarray, count: int) -> np.ndarray:
    """Indices int[Q, count] of the images nearest to texts: float32[Q, D], nearest first."""
    return _largest(_float(texts) @ _float(examples.image_embeddings).T, count)


def nearest_names(examples: RetrievalExamples, images: Sequence[int], count: int) -> np.ndarray:
    """Indices int[K, count] of the names nearest to the K images with these indices, nearest first."""
    return _largest(_name_similarities(examples, images), count)


def spread_images(examples: RetrievalExamples, count: int) -> list[int]:
    """Up to `count` image indices, half of them of unseen concepts where there are any.

    Evenly spaced through the set in its own order, so the choice depends on neither the embeddings nor luck.
    """
    unseen = np.asarray(examples.unseen, bool)[np.asarray(examples.labels)]
    hidden = spread(np.flatnonzero(unseen), count // 2)
    trained = spread(np.flatnonzero(~unseen), count - len(hidden))
    return [int(index) for index in [*trained, *hidden]]


def _view(
    name: str, examples: RetrievalExamples, queries: Sequence[str], texts: np.ndarray | None, short: bool
) -> dict[str, Any]:
    """The template's input for one set: its sizes, examples and, unless in short, the heat map."""
    shown = _QUERIES_IN_SHORT if short else len(queries)
    cards = _image_to_text(
        examples, spread_images(examples, _SHOWN_IMAGES_IN_SHORT if short else _SHOWN_IMAGES)
    )
    return {
        "name": name,
        "note": page.NOTES.get(name),
        "short": short,
        "images": len(examples.images),
        "names": len(examples.names),
        "unseen": int(np.sum(examples.unseen)),
        "queries": _text_to_image(examples, queries[:shown], texts[:shown]) if texts is not None else [],
        "cards": cards,
        "right": sum(card["rank"] == 1 for card in cards),
        "hidden": sum(card["unseen"] for card in cards),
        "heat_map": None if short else _heat_map(examples),
    }


def _text_to_image(
    examples: RetrievalExamples, queries: Sequence[str], texts: np.ndarray
) -> list[dict[str, Any]]:
    similarities = texts @ _float(examples.image_embeddings).T
    nearest = nearest_images(examples, texts, _NEAREST_IMAGES)
    return [
        {"query": query, "images": [_thumbnail(examples, i) | {"similarity": float(row[i])} for i in chosen]}
        for query, row, chosen in zip(queries, similarities, nearest, strict=True)
    ]


def _image_to_text(examples: RetrievalExamples, images: list[int]) -> list[dict[str, Any]]:
    """One card per image: its nearest names and the rank of the true one, counted from 1."""
    similarities = _name_similarities(examples, images)
    orders = nearest_names(examples, images, len(examples.names))
    cards = []
    for image, row, order in zip(images, similarities, orders, strict=True):
        label = int(examples.labels[image])
        guesses = [_guess(examples, name, row, right=name == label) for name in order[:_NEAREST_NAMES]]
        rank = int(np.flatnonzero(order == label)[0]) + 1
        card = {"guesses": guesses, "rank": rank, "true": _guess(examples, label, row, right=True)}
        cards.append(_thumbnail(examples, image) | card)
    return cards


def _guess(examples: RetrievalExamples, name: int, similarities: np.ndarray, right: bool) -> dict[str, Any]:
    unseen = bool(examples.unseen[name])
    return {
        "name": examples.names[name],
        "similarity": float(similarities[name]),
        "right": right,
        "unseen": unseen,
    }


def _thumbnail(examples: RetrievalExamples, image: int) -> dict[str, Any]:
    label = int(examples.labels[image])
    return {
        "index": int(image),
        "uri": plots.image_uri(examples.images[image]),
        "name": examples.names[label],
        "unseen": bool(examples.unseen[label]),
    }


def _heat_map(examples: RetrievalExamples) -> dict[str, Any]:
    """16 names spread evenly over those that have an image, with the first image of each."""
    labels, first = np.unique(np.asarray(examples.labels), return_index=True)
    chosen = spread(np.arange(len(labels)), _HEAT_MAP_SIDE)
    labels, images = labels[chosen], first[chosen]
    similarities = _name_similarities(examples, images)[:, labels]
    names, unseen = [examples.names[i] for i in labels], np.asarray(examples.unseen)[labels]
    figure = plots.heat_map(np.asarray(examples.images)[images], names, similarities, unseen)
    right = int(np.sum(np.argmax(similarities, axis=1) == np.arange(len(labels))))
    return {"uri": plots.figure_uri(figure, tight=True), "count": len(labels), "right": right}


def _name_similarities(examples: RetrievalExamples, images: Sequence[int]) -> np.ndarray:
    return _float(examples.image_embeddings)[np.asarray(images, int)] @ _float(examples.text_embeddings).T


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
