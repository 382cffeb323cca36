"""What a trained classifier says of labelled pictures."""

from collections.abc import Sequence

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
        ranks, labels, count = [], [], self.classes
        for images, some in self._data.chunks(embedder, f"{self._name}: pictures"):
            logits = embedder.logits(images)
            if logits.shape[1] != count:
                raise ValueError(
                    f"classification: the data has {count} classes, the classifier {logits.shape[1]}"
                )
            ranks.append(ranking.ranks(logits, some[:, None] == np.arange(count)))
            labels.append(some)
        found = scores(np.concatenate(ranks), np.concatenate(labels), count)
        return {f"classification/{self._name}/{metric}": value for metric, value in found.items()}
