"""What judges a run while it trains: its evaluators, checked before anything slow, and what they ask."""

import sys
from collections.abc import Mapping

from big_ssl.data import preprocessing
from big_ssl.evals import suite
from big_ssl.evals.classification import Classifier
from big_ssl.evals.embedder import Towers
from big_ssl.training import build
from big_ssl.training.checkpoints import parse_best
from big_ssl.training.requirements import RequirementsError

# What a message names at most.
_NAMED = 10
# The term whose head is a trained classifier.
_CLASSIFIER = "classification"


def evaluators(config: Mapping, encoders: Mapping) -> dict[str, suite.Evaluator]:
    """Those of config.evals. encoders: {name: module}.

    Raises RequirementsError for what they say of their data, and for what the model lacks that they ask for.
    """
    check_best(config["checkpoint"]["best"], config["evals"])
    objectives = {name: each for s in config["streams"].values() for name, each in s["objectives"].items()}
    for name, options in config["evals"].items():
        if options["kind"] in suite.OF_TEXTS and "contrastive" not in objectives:
            raise RequirementsError(f"evals.{name}: {options['kind']} needs a contrastive objective")
    try:
        found = suite.build(config["evals"])
        for each in found.values():
            suite.check(each, encoders["image"])
    except (ValueError, OSError) as error:
        raise RequirementsError(f"evals: {error}") from error
    for name, each in found.items():
        if isinstance(each, Classifier):
            _check_classifier(f"evals.{name}", each.classes, objectives.get(_CLASSIFIER))
    return found


def check_best(best: str, evals: Mapping) -> None:
    """Raises RequirementsError where no evaluator of the config gives the metric of checkpoint.best.

    Without any evaluator it warns: a run whose evaluations are switched off keeps no best checkpoint.
    """
    wanted = parse_best(best)
    if wanted is None:
        return
    if not evals:
        print(f"checkpoint.best is {best!r}, and nothing is evaluated: no best is kept", file=sys.stderr)
        return
    prefixes = [f"eval/{prefix}" for prefix in suite.metric_prefixes(evals)]
    if not wanted.metric.startswith(tuple(prefixes)):
        more = ", ..." if len(prefixes) > _NAMED else ""
        raise RequirementsError(
            f"checkpoint.best is {best!r}; the metrics of config.evals begin with "
            f"{', '.join(prefixes[:_NAMED])}{more}"
        )


def _check_classifier(name, classes, objective):
    trained = "" if objective is None else objective["classes"]
    if classes != trained:
        has = f"the classifier {trained}" if objective else f"there is no objective {_CLASSIFIER}"
        raise RequirementsError(f"{name}: the data has {classes} classes; {has}")


def towers(config: Mapping, setup) -> Towers:
    """Of the term that embeds whole pictures, which are prepared as its stream prepares them."""
    term = setup.system.embedding_term
    stream = setup.system.terms[term].stream if term else next(iter(config["streams"]))
    prepare = preprocessing.of(build.preparation(config["streams"][stream]["data"]))
    classifier = _CLASSIFIER if _CLASSIFIER in setup.system.terms else ""
    return Towers(setup.system, term, setup.tokenizer, setup.mesh, prepare, classifier=classifier)


def summary(found: Mapping[str, float]) -> str:
    """A line of the metrics that one looks for first; of a run that has several kinds, retrieval last."""
    parts = []
    for kind, metric in (
        ("classification", "top1"),
        ("zero_shot", "top1"),
        ("linear_probe", "top1"),
        ("linear_sweep", "top1"),
        ("linear_head", "top1"),
        ("knn", "k20_top1"),
        ("retrieval", "image_to_text_r1"),
    ):
        values = {
            key.split("/")[2]: x
            for key, x in found.items()
            if key.startswith(f"eval/{kind}/") and key.endswith(f"/{metric}")
        }
        if values and not (kind == "retrieval" and parts):
            shown = ", ".join(f"{name} {value:.1%}" for name, value in values.items())
            parts.append(f"{kind.replace('_', '-')} {metric}: {shown}")
    return "  ".join(parts)
