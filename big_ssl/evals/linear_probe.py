"""Logistic regression on frozen features (CLIP, arXiv 2103.00020, appendix A.3)."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from big_ssl.data.sources import SourceConfig
from big_ssl.evals import ranking
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.labelled_set import FEATURES, held_out, labelled_splits
from big_ssl.evals.reading import no_progress

# Eight a decade.
CLIP_GRID = tuple(float(c) for c in 10 ** np.linspace(-6, 6, 97))


class LinearProbe(Evaluator):
    """Multinomial logistic regression by L-BFGS. A validation split selects C; then the classifier is
    refitted on training and validation data together.

    train, test, validation: labelled sources with the same labels; without validation, a random
    validation_fraction of train takes its place. label: as in LabelledSet. features: "pooled", the image
    encoder's output before its projection, or "images", the normalised embedding. grid: the values of C,
    ascending, 97 from 1e-6 to 1e6 if empty; every_c: tries them all, not only those that `sweep` selects.
    iterations, tolerance: of L-BFGS.
    """

    requires = ("encode_image",)

    def __init__(
        self,
        train: SourceConfig,
        test: SourceConfig,
        validation: SourceConfig | None = None,
        validation_fraction: float = 0.1,
        label: str = "label",
        features: str = "pooled",
        grid: Sequence[float] = (),
        every_c: bool = False,
        iterations: int = 1000,
        tolerance: float = 1e-4,
        *,
        name: str,
    ):
        _logistic_regression()
        if features not in FEATURES:
            raise ValueError(f"features is {features!r}; use {' or '.join(FEATURES)}")
        splits = dict(train=train, validation=validation, test=test)
        self._sets = labelled_splits("linear_probe", splits, label)
        self._fraction, self._features, self._name = validation_fraction, features, name
        self._grid, self._every_c = tuple(grid) or CLIP_GRID, every_c
        self._options = dict(max_iter=iterations, tol=tolerance)

    def metrics(self, predictor) -> dict[str, float]:
        """{"linear_probe/<name>/<metric>": value}: top1, mean_per_class and chance on test, the selected
        c, and its validation_top1."""
        data = {
            split: part.features(predictor, self._features, f"{self._name}: {split}")
            for split, part in self._sets.items()
        }
        if "validation" not in data:
            data |= split_off(*data["train"], self._fraction)
        metrics = probe(
            **data, grid=self._grid, every_c=self._every_c, progress=predictor.progress, options=self._options
        )
        metrics["chance"] = 1 / len(self._sets["train"].names)
        return {f"linear_probe/{self._name}/{metric}": value for metric, value in metrics.items()}


def split_off(features: np.ndarray, labels: np.ndarray, fraction: float) -> dict:
    """dict(train, validation), pairs of (float[N, W], int[N]), split at random with a fixed seed."""
    chosen = held_out(len(labels), fraction)
    return dict(train=(features[~chosen], labels[~chosen]), validation=(features[chosen], labels[chosen]))


def probe(
    train,
    validation,
    test,
    grid: Sequence[float] = CLIP_GRID,
    every_c: bool = False,
    progress: Callable[[Iterable, int, str], Iterable] = no_progress,
    options: Mapping = MappingProxyType({}),
) -> dict[str, float]:
    """Fits and evaluates the classifier.

    Args:
      train, validation, test: (features: float[N, W], labels: int[N]).
      grid, every_c: as in LinearProbe.
      progress: as in Predictor.
      options: of scikit-learn's LogisticRegression.

    Returns:
      top1 and mean_per_class on test, c and validation_top1.
    """

    def accuracy(c):
        return float((_fit(train, c, options).predict(validation[0]) == validation[1]).mean())

    best, best_accuracy = sweep(accuracy, grid, every_c, progress)
    both = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
    hits = _fit(both, best, options).predict(test[0]) == test[1]
    mean = ranking.mean_per_class(hits, test[1])
    return dict(top1=float(hits.mean()), mean_per_class=mean, c=best, validation_top1=best_accuracy)


def sweep(
    score: Callable[[float], float],
    grid: Sequence[float],
    every_c: bool = False,
    progress: Callable[[Iterable, int, str], Iterable] = no_progress,
) -> tuple[float, float]:
    """Searches a grid: first about every 16th value, seven of 97; then it halves the interval around the best
    until the neighbours of the best have been tried.

    Args:
      score: value -> its score.
      grid: the values, ascending.
      every_c: whether to try all values, for scores with several peaks.
      progress: as in Predictor.

    Returns:
      (the value with the largest score, that score); of equal ones the smallest, the most regularised fit.
    """
    if not len(grid):
        raise ValueError("linear_probe: the grid of C is empty")
    stride = 1 if every_c else 2 ** max(0, int(np.log2(max(1, (len(grid) - 1) / 6))))
    tried = {i: score(grid[i]) for i in progress(range(0, len(grid), stride), -(-len(grid) // stride), "C")}
    while stride > 1:
        stride //= 2
        best = _best(tried)
        for i in (best - stride, best + stride):
            if 0 <= i < len(grid) and i not in tried:
                tried[i] = score(grid[i])
    best = _best(tried)
    return float(grid[best]), tried[best]


def _best(tried):
    return min(tried, key=lambda i: (-tried[i], i))


def _fit(pair, c, options):
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # The protocol has a fixed number of iterations, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _logistic_regression()(C=c, **options).fit(np.asarray(pair[0], np.float64), pair[1])


def _logistic_regression():
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ValueError("linear_probe needs scikit-learn: pip install 'big-ssl[eval]'") from error
    return LogisticRegression
