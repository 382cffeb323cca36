"""What becomes of a run whose evaluators raise, and of an evaluation that a run did not survive."""

import shutil

import jax
import pytest

from big_ssl.evals import suite
from big_ssl.evals.evaluator import Evaluator
from big_ssl.training import evaluation
from big_ssl.training.metrics import read_lines
from big_ssl.training.stopping import TrainingFailed


class Flaky(Evaluator):
    """Raises at those of its evaluations, counted from 1, that `failures` names."""

    asked = 0

    def __init__(self, failures: tuple = (), *, name: str):
        self._failures, self._name = failures, name

    def metrics(self, predictor):
        Flaky.asked += 1
        if Flaky.asked in self._failures:
            raise ValueError("the image of record 5\ncan't be decoded")
        return {f"flaky/{self._name}/top1": float(Flaky.asked)}


@pytest.fixture(autouse=True)
def flaky(monkeypatch):
    monkeypatch.setitem(suite.EVALUATORS, "flaky", Flaky)
    Flaky.asked = 0


def _config(micro_config, failures, **changes):
    evals = dict(x=dict(kind="flaky", failures=failures))
    return micro_config(eval_every=2, evals=evals, **changes)


def _lines(workdir):
    return {
        line["step"]: {key: value for key, value in line.items() if key.startswith("eval/")}
        for line in read_lines(workdir / "metrics.jsonl")
        if any(key.startswith("eval/") for key in line)
    }


KEY = "eval/failures/x/in_a_row"


def test_an_evaluator_that_raises_is_counted_and_runs_again(train, micro_config, tmp_path, capsys):
    result = train(_config(micro_config, (1, 2)), tmp_path)
    assert result.finished
    found = _lines(tmp_path)
    top1 = "eval/flaky/x/top1"
    assert found == {2: {KEY: 1}, 4: {KEY: 2}, 6: {KEY: 0, top1: 3}, 8: {top1: 4}}
    if jax.process_index() == 0:
        said = capsys.readouterr().out
        assert "evals.x failed (2 in a row): ValueError: the image of record 5 " in said


@pytest.mark.slow
def test_it_fails_the_run_after_some_in_a_row_restarts_included(train, micro_config, tmp_path, stop_after):
    """Each of which has saved before, so that no step is done again."""
    config = _config(micro_config, (1, 2, 3, 4))
    stop_after(4)
    assert not train(config, tmp_path).finished
    stop_after(100)
    message = r"^step 6: evals.x failed 3 times in a row \(config.failure_limits.evaluator_failures"
    with pytest.raises(TrainingFailed, match=message):
        train(config, tmp_path)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 6]
    # Started again, it goes on from there, and ends where it fails again.
    with pytest.raises(TrainingFailed, match=r"^step 8: evals\.x failed 4 times"):
        train(config, tmp_path)


@pytest.mark.slow
def test_an_evaluation_that_the_run_did_not_survive_is_done_by_the_next(
    train, micro_config, tmp_path, monkeypatch, capsys
):
    """And left out where it has ended the run more often than an evaluator may fail."""
    config = _config(micro_config, (), failure_limits__evaluator_failures_in_a_row=1)

    def killed(self, predictor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluation, "metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    shutil.copytree(tmp_path, other := tmp_path.with_name("other"))
    assert train(config, tmp_path).finished
    found = [line for line in read_lines(tmp_path / "metrics.jsonl") if "eval/flaky/x/top1" in line]
    assert [(line["step"], line["eval/flaky/x/top1"]) for line in found] == [(2, 1), (4, 2), (6, 3), (8, 4)]
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "eval/interrupted": 1}\n')
    assert train(config, other).finished
    assert "its evaluation ended the run too often: left out" in capsys.readouterr().out
    assert next(iter(_lines(other).items())) == (2, {"eval/interrupted": 2})


def test_a_failure_on_one_host_is_one_on_all(monkeypatch):
    """Here it succeeded; the other host's error counts on both."""

    class Fine:
        def metrics(self, predictor):
            return {"flaky/x/top1": 1.0}

    here = evaluation.Evaluation({"x": Fine()}, limit=2, lines=[], start=0)
    monkeypatch.setattr(evaluation.distributed, "gather", lambda text: [text, "OSError: no disk"])
    metrics, problems = here.metrics(None)
    assert (metrics, problems) == ({KEY: 1}, ["evals.x failed (1 in a row): OSError: no disk"])
    here.check_health(2)
    here.metrics(None)
    with pytest.raises(TrainingFailed):
        here.check_health(4)
