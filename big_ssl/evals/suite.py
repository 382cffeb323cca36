"""The table of evaluators, from which configs and the command choose by `kind`."""

from collections.abc import Callable, Mapping

from big_ssl.evals.capabilities import requirement_error
from big_ssl.evals.classification import Classifier
from big_ssl.evals.depth import Depth
from big_ssl.evals.detection import Detection
from big_ssl.evals.emoji import SPLITS
from big_ssl.evals.emoji_suite import STYLES, EmojiSuite
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.knn import Knn
from big_ssl.evals.linear_head import LinearHead
from big_ssl.evals.linear_probe import LinearProbe
from big_ssl.evals.linear_sweep import LinearSweep
from big_ssl.evals.retrieval import Retrieval
from big_ssl.evals.segmentation import Segmentation
from big_ssl.evals.zero_shot import UniclZeroShot, ZeroShot

EVALUATORS: dict[str, type[Evaluator]] = {
    "emoji": EmojiSuite,
    "classification": Classifier,
    "zero_shot": ZeroShot,
    "unicl_zero_shot": UniclZeroShot,
    "retrieval": Retrieval,
    "linear_probe": LinearProbe,
    "linear_sweep": LinearSweep,
    "linear_head": LinearHead,
    "knn": Knn,
    "depth": Depth,
    "segmentation": Segmentation,
    "detection": Detection,
}


def build(config: Mapping[str, Mapping]) -> dict[str, Evaluator]:
    """The evaluators of config.evals, {name: dict(kind, its options)}.

    Raises ValueError or FileNotFoundError if options or data do not fit.
    """
    evaluators = {}
    for name, options in config.items():
        make: Callable[..., Evaluator] = EVALUATORS[options["kind"]]
        evaluators[name] = make(**{k: v for k, v in options.items() if k != "kind"}, name=name)
    return evaluators


def check(path: str, evaluator: Evaluator, predictor) -> None:
    """Raises ValueError, which begins with the evaluator's path, if a model lacks what it requires."""
    if error := requirement_error(predictor, evaluator.requires):
        raise ValueError(f"{path} {error}")
    try:
        evaluator.check(predictor)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def metric_prefixes(config: Mapping[str, Mapping]) -> list[str]:
    """The prefixes of the metrics of config.evals: "<kind>/<dataset>/"."""
    prefixes = []
    for name, options in config.items():
        if options["kind"] == "emoji":
            sets = [style + split for style in options.get("styles", STYLES) for split in SPLITS]
            prefixes += [f"{kind}/{dataset}/" for kind in ("zero_shot", "retrieval") for dataset in sets]
        else:
            prefixes.append(f"{options['kind']}/{name}/")
    return prefixes
