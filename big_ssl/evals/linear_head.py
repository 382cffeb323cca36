"""The accuracy of a published linear head on labelled images (DINOv2, arXiv 2304.07193)."""

from collections.abc import Mapping, Sequence

import flax.linen as nn

from big_ssl.data.sources import SourceConfig
from big_ssl.evals.classification import logit_scores
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.labelled_set import LabelledSet
from big_ssl.evals.linear_features import check_layers, linear_features
from big_ssl.models.vit import ViT
from big_ssl.weights.linear_heads import BLOCKS, read_head


class LinearHead(Evaluator):
    """Predicts the class with the largest logit of a linear head from a file, on the frozen encoder that it
    was trained on.

    head: a file as in weights.linear_heads. test, label, classes: as in LabelledSet, in the order of the
    head's classes. If the head has ImageNet's 1000 classes and the set some of them (ImageNet-A, -R), the
    other logits are left out.
    """

    requires = ("intermediate_layers",)

    def __init__(
        self,
        head: str,
        test: SourceConfig,
        label: str = "label",
        classes: str | Sequence[str] = "",
        *,
        name: str,
    ):
        self._weight, self._bias = read_head(head)
        self._data, self._name = LabelledSet(test, label, classes), name
        count, outputs = len(self._data.names), len(self._bias)
        if count != outputs and outputs == 1000 and self._data.imagenet:
            rows = list(self._data.imagenet)
            self._weight, self._bias = self._weight[rows], self._bias[rows]
        elif count != outputs:
            raise ValueError(f"linear_head: the data has {count} classes, {head} {outputs}")

    def check(self, predictor) -> None:
        """Raises ValueError if the image encoder does not have the outputs that the head reads."""
        blocks(predictor.encoder, self._weight.shape[1])

    def metrics(self, predictor) -> dict[str, float]:
        """{"linear_head/<name>/<metric>": fraction}; see evals.zero_shot.scores. There is no top5 with five
        classes or fewer."""

        def logits(images):
            features = predictor.apply(head_input, images, self._weight.shape[1])
            return features @ self._weight.T + self._bias

        metrics = logit_scores(self._data, logits, predictor, f"{self._name}: images")
        if len(self._bias) <= 5:
            del metrics["top5"]
        return {f"linear_head/{self._name}/{metric}": value for metric, value in metrics.items()}


def head_input(model: ViT, variables: Mapping, images, size: int):
    """The input of a head that reads `size` numbers: float32[B, size], see weights.linear_heads.

    images: as in linear_features. Raises ValueError as `blocks` does.
    """
    return linear_features(model, variables, images, blocks(model, size)).reshape(len(images), size)


def blocks(encoder: nn.Module, size: int) -> int:
    """The number of layers whose class tokens a head of `size` inputs reads.

    Raises ValueError if no such head was trained on this image encoder.
    """
    check_layers(encoder, min(BLOCKS))
    sizes = {(count + 1) * encoder.width: count for count in BLOCKS}
    if size not in sizes:
        valid = " or ".join(f"{numbers} (blocks: {count})" for numbers, count in sizes.items())
        raise ValueError(
            f"linear_head: the head reads {size} numbers; on this image encoder, of width {encoder.width}, "
            f"it must read {valid}"
        )
    check_layers(encoder, sizes[size])
    return sizes[size]
