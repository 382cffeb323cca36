"""Evaluators by name, as configs and the command choose them."""

from collections.abc import Callable, Mapping
from typing import Protocol

import flax.linen as nn

from big_ssl.evals.classification import Classifier
from big_ssl.evals.embedder import Embedder
from big_ssl.evals.emoji import SPLITS
from big_ssl.evals.emoji_suite import STYLES, EmojiSuite
from big_ssl.evals.knn import Knn
from big_ssl.evals.linear_head import LinearHead
from big_ssl.evals.linear_probe import LinearProbe
from big_ssl.evals.linear_sweep import LinearSweep
from big_ssl.evals.retrieval import Retrieval
from big_ssl.evals.zero_shot import ZeroShot


class Evaluator(Protocol):
    """Built once, from its options and its name; asked of many models, or states of one model, that all
    want their pictures prepared alike."""

    def metrics(self, embedder: Embedder) -> dict[str, float]:
        """{"<kind>/<dataset>/<metric>": value}."""
        ...


EVALUATORS: dict[str, Callable[..., Evaluator]] = {
    "emoji": EmojiSuite,
    "classification": Classifier,
    "zero_shot": ZeroShot,
    "retrieval": Retrieval,
    "linear_probe": LinearProbe,
    "linear_sweep": LinearSweep,
    "linear_head": LinearHead,
    "knn": Knn,
}

# Those that ask a model about texts.
OF_TEXTS = ("emoji", "zero_shot", "retrieval")


def build(config: Mapping[str, Mapping]) -> dict[str, Evaluator]:
    """The evaluators of config.evals, {name: dict(kind, its options)}.

    Raises ValueError, or FileNotFoundError, where the options or the data do not fit.
    """
    found = {}
    for name, options in config.items():
        given = {key: value for key, value in options.items() if key != "kind"}
        found[name] = EVALUATORS[options["kind"]](**given, name=name)
    return found


def metric_prefixes(config: Mapping[str, Mapping]) -> list[str]:
    """What the names of the metrics of config.evals begin with: "<kind>/<dataset>/"."""
    prefixes = []
    for name, options in config.items():
        if options["kind"] == "emoji":
            sets = [style + split for style in options.get("styles", STYLES) for split in SPLITS]
            prefixes += [f"{kind}/{each}/" for kind in ("zero_shot", "retrieval") for each in sets]
        else:
            prefixes.append(f"{options['kind']}/{name}/")
    return prefixes


def check(evaluator: Evaluator, tower: nn.Module) -> None:
    """Raises ValueError where an image tower does not give what an evaluator reads in it."""
    if isinstance(evaluator, LinearSweep | LinearHead):
        evaluator.check(tower)
