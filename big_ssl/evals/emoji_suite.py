"""Zero-shot classification and retrieval on unseen emoji styles, with their baselines."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from big_ssl.data.sources import EmojiPairs
from big_ssl.evals import emoji, ranking
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.report_texts import RetrievalExamples, retrieval_sections

KS = (1, 5, 10)
# No recipe of this project trains on these.
STYLES = ("twemoji", "openmoji")
# Free texts for the report; none of them is the exact name of a concept.
QUERIES = (
    "a smiling face with hearts",
    "someone who is sad and crying",
    "a cat",
    "food from Japan",
    "a red fruit",
    "a flag with a cross",
    "a woman at work",
    "something to drink",
    "a fast vehicle",
    "musical instrument",
    "bad weather",
    "an arrow that points left",
)


class EmojiSuite(Evaluator):
    """Both tasks on whole styles of the embedded drawings, against the names of all concepts.

    styles: the drawing styles to evaluate on; training_styles: those of training, for the pixel
    baseline, which is left out without any.
    """

    requires = ("encode_image", "encode_text")

    def __init__(self, styles: Sequence[str] = STYLES, training_styles: Sequence[str] = (), *, name: str):
        del name  # metrics have the names of the styles
        for style in (*styles, *training_styles):
            EmojiPairs([style])  # an unknown style is an error now, not at the first evaluation
        self._styles, self._training_styles = styles, training_styles
        self._sets: dict[str, emoji.NamedImages] = {}

    def _loaded(self, preprocess):
        """Decodes the drawings, at the first evaluation: that takes seconds, and training starts earlier."""
        if not self._sets:
            self._sets = {style: emoji.load(style, preprocess) for style in self._styles}
        return self._sets

    @functools.cached_property
    def _pixels(self):
        if not self._training_styles:
            return dict.fromkeys(self._styles)
        return {style: emoji.pixel_scores(style, self._training_styles) for style in self._styles}

    def metrics(self, predictor) -> dict[str, float]:
        """{"zero_shot/<style>/..." and "retrieval/<style>/...": fraction}."""
        metrics: dict[str, float] = {}
        for style, examples in self.examples(predictor).items():
            scores = examples.image_embeddings @ examples.text_embeddings.T
            for kind, measure in (("zero_shot", classification), ("retrieval", retrieval)):
                values = measure(self._sets[style], scores, self._pixels[style], style)
                metrics |= {f"{kind}/{key}": value for key, value in values.items()}
        return metrics

    def examples(self, predictor) -> dict[str, RetrievalExamples]:
        """{style: its images and names with their embeddings}."""
        return {
            style: RetrievalExamples(
                images=data.images,
                names=list(data.names),
                labels=data.labels,
                image_embeddings=predictor.encode_image(data.images, resize=False),
                text_embeddings=predictor.encode_text(list(data.names)),
                unseen=data.unseen,
            )
            for style, data in self._loaded(predictor.preprocess).items()
        }

    def sections(self, predictor):
        """Images for free texts, names for images, similarities; shorter after the first style."""
        texts = predictor.encode_text(QUERIES)
        return retrieval_sections(self.examples(predictor), QUERIES, texts)


def classification(data: emoji.NamedImages, scores: np.ndarray, pixels: np.ndarray | None, name: str):
    """Zero-shot metrics of each subset.

    Args:
      data: N images and M names.
      scores: float[N, M], image-name similarities.
      pixels: float[N, M] from emoji.pixel_scores, None to omit that baseline.
      name: the prefix of the metrics.

    Returns:
      {"<name><subset>/<metric>": value}: top1, top5, chance, pixel_1nn_top1.
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
    """Retrieval metrics of each subset.

    In every subset images and names belong to the same concepts, one name per image; so "_unseen" here means
    unseen concepts among themselves.

    Args:
      data, scores, pixels, name: as in `classification`.

    Returns:
      {"<name><subset>/<direction>_r<k>": value} for both directions, chance and pixels.
    """
    metrics = {}
    for suffix, images, names in emoji.subsets(data):
        names = names & np.isin(np.arange(len(names)), data.labels[images])
        positives, chosen = data.positives(images, names), np.ix_(images, names)
        metrics |= _both_directions(scores[chosen], positives, f"{name}{suffix}/")
        if pixels is not None:
            metrics |= _both_directions(pixels[chosen], positives, f"{name}{suffix}/pixel_1nn_")
        metrics |= {f"{name}{suffix}/chance_r{k}": ranking.chance_at(positives, k) for k in KS}
    return metrics


def _both_directions(scores, positives, prefix) -> Mapping[str, float]:
    image_to_text = ranking.recalls(scores, positives, KS, f"{prefix}image_to_text_r")
    return image_to_text | ranking.recalls(scores.T, positives.T, KS, f"{prefix}text_to_image_r")
