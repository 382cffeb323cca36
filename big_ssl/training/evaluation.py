"""Builds, validates and runs the evaluators of a run while it trains."""

import json
import sys
from collections.abc import Iterable, Mapping

import jax
from absl import logging

from big_ssl.data import preprocessing
from big_ssl.evals import suite
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.predictor import Predictor
from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training.checkpoints import parse_best
from big_ssl.training.requirements import RequirementsError
from big_ssl.training.stopping import TrainingFailed

# A message names at most this many metrics.
_NAMED = 10

# Metrics: an evaluator's failures since its last success; how often an evaluation ended the process.
_FAILURES, _INTERRUPTED = "eval/failures/{}/in_a_row", "eval/interrupted"


def predictor(config: Mapping, setup) -> Predictor:
    """The Predictor of a run; `Predictor.for_evaluation` sets its variables."""
    # Enough work for each device of a large mesh.
    size = max(256, 32 * mesh_lib.batch_shards(setup.mesh))
    image_config = preprocessing.model_keys(config["eval_transform"])
    return Predictor(setup.system, None, setup.mesh, image_config, lambda: setup.tokenizer, size)


def evaluators(config: Mapping, predictor: Predictor | None) -> dict[str, Evaluator]:
    """The evaluators of config.evals. predictor: the run's model; None if there are none.

    Raises RequirementsError if data is missing, or the model lacks a method or an output that they require.
    """
    check_best(config["checkpoint"]["best"], config["evals"])
    try:
        built = suite.build(config["evals"])
    except (ValueError, OSError) as error:
        raise RequirementsError(f"evals: {error}") from error
    try:
        for name, evaluator in built.items():
            suite.check(f"evals.{name}", evaluator, predictor)
    except ValueError as error:
        raise RequirementsError(str(error)) from error
    return built


def check_best(best: str, evals: Mapping) -> None:
    """Raises RequirementsError if no evaluator of the config has the metric of checkpoint.best.

    Without any evaluator it warns: a run whose evaluations are switched off keeps no best checkpoint.
    """
    best_metric = parse_best(best)
    if best_metric is None:
        return
    if not evals:
        print(f"checkpoint.best is {best!r}, and nothing is evaluated: no best is kept", file=sys.stderr)
        return
    prefixes = [f"eval/{prefix}" for prefix in suite.metric_prefixes(evals)]
    if not best_metric.metric.startswith(tuple(prefixes)):
        more = ", ..." if len(prefixes) > _NAMED else ""
        raise RequirementsError(
            f"checkpoint.best is {best!r}; the metrics of config.evals begin with "
            f"{', '.join(prefixes[:_NAMED])}{more}"
        )


class Evaluation:
    """Runs the evaluators on one state after another. Failures are counted in the metrics; an evaluator that
    failed runs again at the next evaluation.

    evaluators: {name: Evaluator}. limit: after this many failures in a row of one evaluator the run fails.
    lines: of metrics.jsonl, on process 0. start: the step that the run continues from.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
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
        history = dict(
            failures={name: int(before.get(key) or 0) for name, key in self._keys.items()},
            evaluated=any(key != _INTERRUPTED for key in here),
            times=int(before[_INTERRUPTED]) if _INTERRUPTED in here else 0,
        )
        # Only process 0 has the metrics.
        history = json.loads(distributed.gather(json.dumps(history) if jax.process_index() == 0 else "")[0])
        self._failures, self._times = history["failures"], history["times"]
        self.interrupted = bool(evaluators) and not history["evaluated"]

    def interruption(self) -> dict[str, float]:
        """A metric that counts how often the evaluation of the step `start` has ended the process."""
        self._times += 1
        return {_INTERRUPTED: self._times}

    def may_go_on(self) -> bool:
        """Whether that evaluation is worth another attempt."""
        return self._times <= self._limit

    def metrics(self, predictor) -> tuple[dict[str, float], list[str]]:
        """({"eval/<kind>/<dataset>/<metric>": value} of successful evaluators, [a line for each failed one]).

        All hosts must call it, and get the same result. An evaluator must not raise on one host while others
        wait for it in a computation: it reads its data by evals.reading.
        """
        metrics: dict[str, float] = {}
        problems = []
        for name, evaluator in self._evaluators.items():
            values, problem = _run(evaluator, predictor)
            metrics |= {f"eval/{key}": value for key, value in values.items()}
            if problem or self._failures[name]:
                self._failures[name] = self._failures[name] + 1 if problem else 0
                metrics[self._keys[name]] = self._failures[name]
            if problem:
                problems.append(f"evals.{name} failed ({self._failures[name]} in a row): {problem}")
        return metrics, problems

    def check_health(self, step: int) -> None:
        """Raises TrainingFailed if an evaluator has failed too often in a row."""
        for name, failures in self._failures.items():
            if failures >= self._limit:
                raise TrainingFailed(
                    f"step {step}: evals.{name} failed {failures} times in a row "
                    "(config.failure_limits.evaluator_failures_in_a_row)"
                )


def _run(evaluator, predictor):
    """(metrics, "") or ({}, the error that some host raised), the same on all hosts."""
    values, problem = {}, ""
    try:
        values = evaluator.metrics(predictor)
    except Exception as error:  # no failure of an evaluator may end the run
        logging.info("an evaluator failed", exc_info=error)
        problem = f"{type(error).__name__}: {error}".split("\n")[0]
    problems = distributed.gather(problem)
    failed = [process for process, text in enumerate(problems) if text]
    return (values, "") if not failed else ({}, problems[failed[0]])


def summary(metrics: Mapping[str, float]) -> str:
    """A line of the most important metric of each kind; retrieval only if it is the only kind."""
    parts = []
    for kind, metric in (
        ("classification", "top1"),
        ("zero_shot", "top1"),
        ("linear_probe", "top1"),
        ("linear_sweep", "top1"),
        ("linear_head", "top1"),
        ("knn", "k20_top1"),
        ("depth", "delta1"),
        ("detection", "AP50"),
        ("segmentation", "miou"),
        ("retrieval", "image_to_text_r1"),
    ):
        values = {
            key.split("/")[2]: x
            for key, x in metrics.items()
            if key.startswith(f"eval/{kind}/") and key.endswith(f"/{metric}")
        }
        if values and not (kind == "retrieval" and parts):
            shown = ", ".join(f"{name} {value:.1%}" for name, value in values.items())
            parts.append(f"{kind.replace('_', '-')} {metric}: {shown}")
    return "  ".join(parts)
