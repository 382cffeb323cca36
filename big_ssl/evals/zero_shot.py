"""Zero-shot classification (CLIP, arXiv 2103.00020, section 3.1)."""

from collections.abc import Sequence

import numpy as np

from big_ssl.data import prompt_templates
from big_ssl.data.preprocessing import Pixels
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import prompts, ranking
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.labelled_set import LabelledSet
from big_ssl.weights.format import IMAGENET_PIXELS


class ZeroShot(Evaluator):
    """Classifies images by the nearest class name's embedding.

    data, label, classes: as in LabelledSet; templates: as in prompt_templates.templates; canonicalize:
    prompts in lower case without punctuation (SigLIP).
    """

    requires = ("encode_image", "encode_text")
    kind = "zero_shot"

    def __init__(
        self,
        data: SourceConfig,
        label: str = "label",
        classes: str | Sequence[str] = "",
        templates: str | Sequence[str] = "openai",
        canonicalize: bool = False,
        *,
        name: str,
    ):
        self._data, self._name = LabelledSet(data, label, classes), name
        self._templates, self._canonicalize = prompt_templates.templates(templates), canonicalize

    def metrics(self, predictor) -> dict[str, float]:
        """{"<kind>/<name>/<metric>": fraction}; see `scores`."""
        names = self._data.names
        classes = prompts.class_embeddings(
            predictor.encode_text, names, self._templates, self._canonicalize, predictor.progress
        )
        ranks, labels = [], []
        batches = self._data.batches(predictor.encode_image, predictor, f"{self._name}: images")
        for images, batch_labels in batches:
            ranks.append(class_ranks(images @ classes.T, batch_labels, names))
            labels.append(batch_labels)
        metrics = scores(np.concatenate(ranks), np.concatenate(labels), len(names))
        return {f"{self.kind}/{self._name}/{metric}": value for metric, value in metrics.items()}


class UniclZeroShot(ZeroShot):
    """UniCL's zero-shot protocol (microsoft/UniCL, model/model.py and data/build.py), one preset.

    Its 81 templates, its names of ImageNet's classes; of images the shorter side is resized to
    256 / 224 of the model's image size, rounded down, bicubic, and the center is cropped, whatever the
    model's own evaluation does. Images are normalised by ImageNet's mean and deviation; a model that was
    trained with others is refused.

    data, label, classes: as in ZeroShot, for another set than ImageNet its names.
    """

    kind = "unicl_zero_shot"

    def __init__(
        self,
        data: SourceConfig,
        label: str = "label",
        classes: str | Sequence[str] = "imagenet_unicl",
        *,
        name: str,
    ):
        super().__init__(data, label, classes, "unicl", name=name)

    def check(self, predictor):
        """See Evaluator."""
        published = Pixels.of(IMAGENET_PIXELS)._asdict()
        for part, expected in published.items():
            actual = getattr(predictor.system.eval_pixels, part)
            if np.shape(actual) != np.shape(expected) or not np.allclose(actual, expected, atol=1e-3):
                raise ValueError(
                    f"{part} is {tuple(actual)} in the model's evaluation; UniCL's protocol has ImageNet's, "
                    f"{tuple(expected)}: use zero_shot with templates=unicl"
                )

    def metrics(self, predictor) -> dict[str, float]:
        """See ZeroShot."""
        side = 256 * predictor.image_config["image_size"] // 224
        return super().metrics(predictor.with_resize(f"crop {side} bicubic"))


def class_ranks(similarities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """int[N]: how many other classes score at least as high as the right one.

    Classes with equal names (ImageNet has "missile" and "sunglasses" twice) have equal embeddings: the first
    of them wins, as with the argmax of published evaluations; as ties all of them would lose.

    Args:
      similarities: float32[N, C].
      labels: int[N].
      names: the C class names.
    """
    similarities, last = np.array(similarities, np.float32), dict[str, int]()
    for i, name in enumerate(names):
        if name in last:
            similarities[:, i] = np.nextafter(similarities[:, last[name]], np.float32(-np.inf))
        last[name] = i
    return ranking.ranks(similarities, labels.reshape(-1, 1) == np.arange(len(names)))


def scores(rank: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """top1, top5, their mean_per_class (of top1, over the classes that occur), and chance.

    rank: int[N] from class_ranks; labels: int[N]; classes: how many there are to choose from.
    """
    hits = rank < 1
    return {
        "top1": ranking.recall_at(rank, 1),
        "top5": ranking.recall_at(rank, 5),
        "mean_per_class": ranking.mean_per_class(hits, labels),
        "chance": 1 / classes,
    }
