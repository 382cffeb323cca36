"""Zero-shot classification and retrieval on unseen emoji styles, with their baselines."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from big_ssl.data.sources import EmojiPairs
from big_ssl.evals import emoji, ranking
from big_ssl.evals.report_texts import Scene

KS = (1, 5, 10)
# Those that no recipe here trains on.
STYLES = ("twemoji", "openmoji")


class EmojiSuite:
    """Both tasks on whole styles of the embedded drawings, against the names of all concepts.

    styles: the drawing styles to judge on; training_styles: those trained on, for the pixel
    baseline, which is left out where there are none.
    """

    def __init__(self, styles: Sequence[str] = STYLES, training_styles: Sequence[str] = (), *, name: str):
        del name  # the sets are called after their styles
        for style in (*styles, *training_styles):
            EmojiPairs([style])  # names one that doesn't exist now, not at the first evaluation
        self._styles, self._training_styles = styles, training_styles
        self._sets: dict[str, emoji.NamedImages] = {}

    def _loaded(self, prepare):
        """Seconds of decoding, which the first training step need not wait for."""
        if not self._sets:
            self._sets = {style: emoji.load(style, prepare) for style in self._styles}
        return self._sets

    @functools.cached_property
    def _pixels(self):
        if not self._training_styles:
            return dict.fromkeys(self._styles)
        return {style: emoji.pixel_scores(style, self._training_styles) for style in self._styles}

    def metrics(self, embedder) -> dict[str, float]:
        """{"zero_shot/<style>/..." and "retrieval/<style>/...": fraction}."""
        found: dict[str, float] = {}
        for style, scene in self.scenes(embedder).items():
            scores = scene.image_embeddings @ scene.text_embeddings.T
            for kind, measure in (("zero_shot", classification), ("retrieval", retrieval)):
                values = measure(self._sets[style], scores, self._pixels[style], style)
                found |= {f"{kind}/{key}": value for key, value in values.items()}
        return found

    def scenes(self, embedder) -> dict[str, Scene]:
        """Each style's pictures and names with their embeddings, for the report."""
        return {style: _scene(embedder, data) for style, data in self._loaded(embedder.prepare).items()}


def _scene(embedder, data):
    return Scene(
        images=data.images,
        names=list(data.names),
        labels=data.labels,
        image_embeddings=embedder.images(data.images),
        text_embeddings=embedder.texts(data.names),
        unseen=data.unseen,
    )


def classification(data: emoji.NamedImages, scores: np.ndarray, pixels: np.ndarray | None, name: str):
    """{"<name><subset>/<metric>": value}: top1, top5, chance, pixel_1nn_top1 of each subset.

    scores: float[N, M], image-name similarity; pixels: the same from emoji.pixel_scores, None to
    leave out that baseline.
    """
    metrics = {}
    for suffix, images, names in emoji.subsets(data):
        positives = data.positives(images, names)
        chosen = np.ix_(images, names)
        rank = ranking.ranks(scores[chosen], positives)
        metrics |= {
            f"{name}{suffix}/top1": ranking.recall_at(rank, 1),
            f"{name}{suffix}/top5": ranking.recall_at(rank, 5),
            f"{name}{suffix}/chance": ranking.chance_at(positives, 1),
        }
        if pixels is not None:
            rank = ranking.ranks(pixels[chosen], positives)
            metrics[f"{name}{suffix}/pixel_1nn_top1"] = ranking.recall_at(rank, 1)
    return metrics


def retrieval(data: emoji.NamedImages, scores: np.ndarray, pixels: np.ndarray | None, name: str):
    """{"<name><subset>/<direction>_r<k>": value} for both directions, chance and pixels.

    In every subset the pictures and the names are those of the same concepts, one name a
    picture; so "_unseen" here means unseen concepts among themselves.
    """
    metrics = {}
    for suffix, images, names in emoji.subsets(data):
        names = names & np.isin(np.arange(len(names)), data.labels[images])
        positives, chosen = data.positives(images, names), np.ix_(images, names)
        metrics |= _both_ways(scores[chosen], positives, f"{name}{suffix}/")
        if pixels is not None:
            metrics |= _both_ways(pixels[chosen], positives, f"{name}{suffix}/pixel_1nn_")
        metrics |= {f"{name}{suffix}/chance_r{k}": ranking.chance_at(positives, k) for k in KS}
    return metrics


def _both_ways(scores, positives, prefix) -> Mapping[str, float]:
    forth = ranking.recalls(scores, positives, KS, f"{prefix}image_to_text_r")
    return forth | ranking.recalls(scores.T, positives.T, KS, f"{prefix}text_to_image_r")
