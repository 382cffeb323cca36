"""The accuracy of a trained classifier on labelled images."""

from collections.abc import Callable, Sequence

import numpy as np

from big_ssl.data.sources import SourceConfig
from big_ssl.evals import ranking
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.labelled_set import LabelledSet
from big_ssl.evals.zero_shot import scores


class Classifier(Evaluator):
    """Predicts the class with the largest logit of the trained classifier.

    data, label, classes: as in LabelledSet, in the order of the classes of training.
    """

    requires = ("classify",)

    def __init__(
        self, data: SourceConfig, label: str = "label", classes: str | Sequence[str] = "", *, name: str
    ):
        self._data, self._name = LabelledSet(data, label, classes), name

    def check(self, predictor) -> None:
        """Raises ValueError if the classifier has another number of classes."""
        if predictor.classes != len(self._data.names):
            raise ValueError(
                f"classification: the data has {len(self._data.names)} classes, the classifier "
                f"{predictor.classes}"
            )

    def metrics(self, predictor) -> dict[str, float]:
        """{"classification/<name>/<metric>": fraction}; see evals.zero_shot.scores."""
        metrics = logit_scores(self._data, predictor.classify, predictor, f"{self._name}: images")
        return {f"classification/{self._name}/{metric}": value for metric, value in metrics.items()}


def logit_scores(
    data: LabelledSet, logits: Callable[[np.ndarray], np.ndarray], predictor, description: str
) -> dict[str, float]:
    """The scores of a classifier, see evals.zero_shot.scores; ties count against it.

    Args:
      data: the labelled images.
      logits: images, as the predictor's methods take them, -> float[N, C].
      predictor: preprocesses the images and shares their decoding among hosts.
      description: for the progress, as in LabelledSet.batches.

    Returns:
      {metric: fraction}.
    """
    ranks, labels, classes = [], [], len(data.names)
    for batch_logits, batch_labels in data.batches(logits, predictor, description):
        ranks.append(ranking.ranks(batch_logits, batch_labels[:, None] == np.arange(classes)))
        labels.append(batch_labels)
    return scores(np.concatenate(ranks), np.concatenate(labels), classes)
