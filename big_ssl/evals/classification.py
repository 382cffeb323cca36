"""What a trained classifier says of labelled pictures."""

from collections.abc import Callable, Sequence

import numpy as np

from big_ssl.data.sources import SourceConfig
from big_ssl.evals import ranking
from big_ssl.evals.labelled_set import LabelledSet
from big_ssl.evals.zero_shot import scores


class Classifier:
    """Pictures by the largest logit of the head that the objective "classification" trains.

    data, label, classes: as in LabelledSet, in the order of the classes that were trained.
    """

    def __init__(
        self, data: SourceConfig, label: str = "label", classes: str | Sequence[str] = "", *, name: str
    ):
        self._data, self._name = LabelledSet(data, label, classes), name

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self._data.names)

    def metrics(self, embedder) -> dict[str, float]:
        """{"classification/<name>/<metric>": fraction}; see evals.zero_shot.scores.

        Raises ValueError for a model without a classifier, and for one of another number of classes.
        """
        if embedder.logits is None:
            raise ValueError("classification: this model has no classifier")

        def logits(images):
            found = embedder.logits(images)
            if found.shape[1] != self.classes:
                raise ValueError(
                    f"classification: the data has {self.classes} classes, the classifier {found.shape[1]}"
                )
            return found

        found = judged(self._data, logits, embedder, f"{self._name}: pictures")
        return {f"classification/{self._name}/{metric}": value for metric, value in found.items()}


def judged(
    data: LabelledSet, logits: Callable[[np.ndarray], np.ndarray], embedder, what: str
) -> dict[str, float]:
    """The scores (see evals.zero_shot) of a classifier, ties against it.

    logits: pictures as the embedder's functions take them -> float[N, C]; what: as in
    LabelledSet.embedded.
    """
    ranks, labels, count = [], [], len(data.names)
    for found, some in data.embedded(logits, embedder, what):
        ranks.append(ranking.ranks(found, some[:, None] == np.arange(count)))
        labels.append(some)
    return scores(np.concatenate(ranks), np.concatenate(labels), count)
