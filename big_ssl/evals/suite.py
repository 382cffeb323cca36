"""Evaluators by name, as configs choose them, and their run over a state."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from big_ssl.data.sources import EmojiPairs
from big_ssl.evals import emoji, zero_shot
from big_ssl.evals.embedder import Embedder
from big_ssl.evals.report import Scene


class EmojiSuite:
    """Zero-shot classification and retrieval on unseen emoji styles.

    styles: the drawing styles to judge on; training_styles: those trained on, for the pixel
    baseline; the pictures are resized and cropped as in the config's first stream.
    """

    def __init__(
        self, styles: Sequence[str], training_styles: Sequence[str], *, system, tokenizer, mesh, sizes
    ):
        self._sets = {style: emoji.load(style, *sizes) for style in styles}
        EmojiPairs(training_styles)  # names a style that doesn't exist now, not at the first evaluation
        self._training_styles = training_styles
        self._embedder = Embedder(system, "contrastive", tokenizer, mesh)

    @functools.cached_property
    def _pixels(self):
        """Seconds of decoding, which the first training step need not wait for."""
        return {style: emoji.pixel_scores(style, self._training_styles) for style in self._sets}

    def metrics(self, variables) -> dict[str, float]:
        """{"zero_shot/..." and "retrieval/...": fraction}."""
        found: dict[str, float] = {}
        for style, scene in self.scenes(variables).items():
            scores = scene.image_embeddings @ scene.text_embeddings.T
            for kind, measure in (
                ("zero_shot", zero_shot.classification),
                ("retrieval", zero_shot.retrieval),
            ):
                values = measure(self._sets[style], scores, self._pixels[style], style)
                found |= {f"{kind}/{key}": value for key, value in values.items()}
        return found

    def scenes(self, variables) -> dict[str, Scene]:
        """Each style's pictures and names with their embeddings, for the report."""
        return {style: self._scene(variables, data) for style, data in self._sets.items()}

    def encode_text(self, variables) -> Callable[[Sequence[str]], np.ndarray]:
        """The text tower as a function of texts."""
        return lambda texts: self._embedder.texts(variables, texts)

    def _scene(self, variables, data):
        return Scene(
            images=data.images,
            names=list(data.names),
            labels=data.labels,
            image_embeddings=self._embedder.images(variables, data.images),
            text_embeddings=self._embedder.texts(variables, data.names),
            unseen=data.unseen,
        )


EVALUATORS = {"emoji": EmojiSuite}


def build(config: Mapping, **context) -> dict[str, EmojiSuite]:
    """The evaluators of a run; context: system, tokenizer, mesh, sizes."""
    return {name: EVALUATORS[name](**options, **context) for name, options in config.items()}
