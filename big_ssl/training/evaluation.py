"""Builds, validates and runs the evaluators of a run while it trains."""

import json
import sys
from collections.abc import Iterable, Mapping

import jax
from absl import logging

from big_ssl.data import preprocessing
from big_ssl.evals import suite
from big_ssl.evals.classification import Classifier
from big_ssl.evals.embedder import Towers
from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import build
from big_ssl.training.checkpoints import parse_best
from big_ssl.training.requirements import RequirementsError
from big_ssl.training.stopping import TrainingFailed

# What a message names at most.
_NAMED = 10
# The term whose head is a trained classifier.
_CLASSIFIER = "classification"

# Metrics: an evaluator's failures since it last succeeded; how often a run did not survive an evaluation.
_FAILURES, _INTERRUPTED = "eval/failures/{}/in_a_row", "eval/interrupted"


def evaluators(config: Mapping, encoders: Mapping) -> dict[str, suite.Evaluator]:
    """Those of config.evals. encoders: {name: module}.

    Raises RequirementsError where data is missing, or the model lacks an output that an evaluator reads.
    """
    check_best(config["checkpoint"]["best"], config["evals"])
    objectives = {each["kind"]: each for s in config["streams"].values() for each in s["objectives"].values()}
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
    term = setup.system.provider("encode_image")
    stream = setup.system.terms[term].stream if term else next(iter(config["streams"]))
    prepare = preprocessing.of(build.preparation(config["streams"][stream]["data"]))
    classifier = setup.system.provider("classify")
    # Enough for each device of a large mesh to be worth its while.
    size = max(256, 32 * mesh_lib.batch_shards(setup.mesh))
    return Towers(setup.system, term, setup.tokenizer, setup.mesh, prepare, size, classifier)


class Evaluation:
    """Runs the evaluators on one state after another. One that raises is counted in the metrics, and runs
    again at the next evaluation.

    limit: after how many failures in a row of one evaluator the run has failed;
    lines: of metrics.jsonl, on process 0; start: the step that the run goes on from.
    """

    def __init__(
        self,
        evaluators: Mapping[str, suite.Evaluator],
        limit: int,
        lines: Iterable[Mapping],
        start: int,
    ):
        self._evaluators, self._limit = evaluators, limit
        self._keys = {name: _FAILURES.format(name) for name in evaluators}
        before: dict = {}
        here: set[str] = set()
        for line in lines:
            keys = {key for key in line if key.startswith("eval/")} if line["step"] <= start else set()
            before |= {key: line[key] for key in keys}
            here |= keys if line["step"] == start else set()
        known = dict(
            failures={name: int(before.get(key) or 0) for name, key in self._keys.items()},
            evaluated=any(key != _INTERRUPTED for key in here),
            times=int(before[_INTERRUPTED]) if _INTERRUPTED in here else 0,
        )
        # Only process 0 has the metrics.
        known = json.loads(distributed.gather(json.dumps(known) if jax.process_index() == 0 else "")[0])
        self._failures, self._times = known["failures"], known["times"]
        self.interrupted = bool(evaluators) and not known["evaluated"]

    def interruption(self) -> dict[str, float]:
        """A metric that counts how often a run did not survive the evaluation of the step it goes on from."""
        self._times += 1
        return {_INTERRUPTED: self._times}

    def may_go_on(self) -> bool:
        """Whether that evaluation is worth another attempt."""
        return self._times <= self._limit

    def metrics(self, embedder) -> tuple[dict[str, float], list[str]]:
        """({"eval/<kind>/<dataset>/<metric>": value} of those that succeed, a line for each that fails).

        All hosts must call it, and get the same. An evaluator must not raise on one host while others wait
        for it in a computation: what it reads, it reads by evals.reading.
        """
        metrics: dict[str, float] = {}
        problems = []
        for name, evaluator in self._evaluators.items():
            values, problem = _run(evaluator, embedder)
            metrics |= {f"eval/{key}": value for key, value in values.items()}
            if problem or self._failures[name]:
                self._failures[name] = self._failures[name] + 1 if problem else 0
                metrics[self._keys[name]] = self._failures[name]
            if problem:
                problems.append(f"evals.{name} failed ({self._failures[name]} in a row): {problem}")
        return metrics, problems

    def check_health(self, step: int) -> None:
        """Raises TrainingFailed where an evaluator has failed too often in a row."""
        for name, failures in self._failures.items():
            if failures >= self._limit:
                raise TrainingFailed(
                    f"step {step}: evals.{name} failed {failures} times in a row "
                    "(config.failure_limits.evaluator_failures_in_a_row)"
                )


def _run(evaluator, embedder):
    """(metrics, "") or ({}, what was raised, on any host), the same on all hosts."""
    values, problem = {}, ""
    try:
        values = evaluator.metrics(embedder)
    except Exception as error:  # whatever one evaluator lacks, the run goes on without it
        logging.info("an evaluator failed", exc_info=error)
        problem = f"{type(error).__name__}: {error}".split("\n")[0]
    problems = distributed.gather(problem)
    failed = [process for process, text in enumerate(problems) if text]
    return (values, "") if not failed else ({}, problems[failed[0]])


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
