"""Whole runs in this process: resuming, stopping, bad data, bad steps and a workdir that won't do."""

import collections
import json
import pathlib
import shutil
import signal
import types

import jax
import numpy as np
import pytest

from big_ssl import main
from big_ssl.evals.evaluator import Evaluator
from big_ssl.training import evaluation, loop, requirements
from big_ssl.training.metrics import read_lines
from big_ssl.training.stopping import StopRequest, TrainingFailed, check_health


@pytest.fixture(scope="module")
def whole(micro_config, set_up, tmp_path_factory):
    """The run that nothing interrupts: (state on the host, workdir)."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "set_up", set_up)
        result = loop.train(micro_config(), workdir)
    assert result.finished
    return jax.device_get(result.state), workdir


def _assert_same(state, expected):
    """Bit by bit, optimiser, averages, statistics and counters included."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)


def _losses(workdir):
    return [(line["step"], line["train/loss"]) for line in _train_lines(workdir)]


def _train_lines(workdir):
    """Without the last line of a stretch, which only says where the time went."""
    lines = read_lines(pathlib.Path(workdir) / "metrics.jsonl")
    return [line for line in lines if "train/loss" in line]


@pytest.mark.smoke
@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(step, train, micro_config, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "reached", lambda self, now: now == step)
        stopped = train(micro_config(), tmp_path)
    assert not stopped.finished
    assert int(stopped.state.step) == step
    assert (tmp_path / "checkpoints" / str(step)).exists()
    result = train(micro_config(), tmp_path)
    assert result.finished
    _assert_same(result.state, whole[0])
    assert _losses(tmp_path) == _losses(whole[1])


def test_a_finished_run_started_again_has_nothing_to_do(train, micro_config, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[1], tmp_path / "run")
    monkeypatch.setattr(loop.Setup, "init", None)
    result = train(micro_config(), tmp_path / "run")
    assert result.finished
    _assert_same(result.state, whole[0])
    assert _losses(tmp_path / "run") == _losses(whole[1])


def test_a_truncated_checkpoint_is_skipped_and_the_run_ends_the_same(train, micro_config, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[1], workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "8"]
    for data in (workdir / "checkpoints" / "8").rglob("d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    result = train(micro_config(), workdir)
    _assert_same(result.state, whole[0])
    assert _losses(workdir) == _losses(whole[1])
    assert [path.name.split("_")[0] for path in (workdir / "damaged_checkpoints").iterdir()] == ["8"]
    # Step 8 was saved again, whole this time: a third start has nothing to do.
    assert int(train(micro_config(), workdir).state.step) == 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_between_steps_and_the_next_one_is_not_caught(number):
    received = []
    before = signal.signal(number, lambda *_: received.append("outer"))
    try:
        stop = StopRequest()
        assert not stop.reached(1)
        signal.raise_signal(number)
        assert stop.reached(2)
        assert received == []
        signal.raise_signal(number)
        assert received == ["outer"]
        stop.close()
    finally:
        signal.signal(number, before)


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        signal.raise_signal(signal.SIGHUP)
        assert not stop.reached(1)
        stop.close()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_are_put_back(train, micro_config, whole, tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    train(micro_config(), whole[1])
    assert before == [signal.getsignal(number) for number in numbers]


# Steps that are not finite.


@pytest.fixture
def poisoned(monkeypatch, set_up):
    """poisoned({3, 4}): in these steps the temperature is 0, hence the loss NaN; then it is healed."""

    def poison(steps):
        def with_scale(state, value):
            heads = state.params["heads"]
            leaf = heads["contrastive"]["logit_scale"]
            value = jax.device_put(np.float32(value), leaf.sharding)
            contrastive = heads["contrastive"] | dict(logit_scale=value)
            return state.replace(params=state.params | dict(heads=heads | dict(contrastive=contrastive)))

        def patched(config, devices=None, first=0):
            setup = set_up(config, devices, first)

            def step(state, batch):
                if int(state.step) + 1 not in steps:
                    return setup.step(state, batch)
                scale = np.array(state.params["heads"]["contrastive"]["logit_scale"])
                state, metrics = setup.step(with_scale(state, np.inf), batch)
                return with_scale(state, scale), metrics

            return setup._replace(step=step)

        monkeypatch.setattr(loop, "set_up", patched)

    return poison


def test_steps_that_are_not_finite_are_skipped_counted_and_reported(poisoned, micro_config, tmp_path, capsys):
    poisoned({3, 4})
    result = loop.train(micro_config(failure_limits__skipped_in_a_row=3), tmp_path)
    assert result.finished
    state = jax.device_get(result.state)
    assert (state.counters["skipped"], state.counters["skipped_in_a_row"]) == (2, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    # AdamW counted six steps: those skipped are not among them.
    assert int(state.opt_state[0].count) == 6
    lines = _train_lines(tmp_path)
    assert [line["train/loss"] is None for line in lines] == [False, False, True, True, *[False] * 4]
    assert [line["train/skipped"] for line in lines] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert "skipped 2" in capsys.readouterr().out


def test_too_many_such_steps_in_a_row_stop_the_run(poisoned, micro_config, tmp_path):
    poisoned({3, 4, 5})
    message = (
        r"step 5: the loss, its gradient or the update was not finite 3 times in a row "
        r"\(config.failure_limits.skipped_in_a_row\)"
    )
    with pytest.raises(TrainingFailed, match=message):
        loop.train(micro_config(failure_limits__skipped_in_a_row=3), tmp_path)


def test_they_are_noticed_where_nothing_is_logged(poisoned, micro_config, tmp_path):
    poisoned({3, 4, 5})
    with pytest.raises(TrainingFailed, match="step 5: "):
        loop.train(micro_config(failure_limits__skipped_in_a_row=3, log_every=100), tmp_path)


@pytest.mark.slow
def test_a_rate_that_overflows_leaves_nothing_behind(train, micro_config, tmp_path):
    """Each update would be infinite: none is kept, the run fails, and a sane rate goes on from there."""
    config = micro_config(learning_rate__peak=1e30, total_steps=30, failure_limits__skipped_in_a_row=5)
    with pytest.raises(TrainingFailed, match="update was not finite 5 times in a row"):
        train(config, tmp_path)
    result = train(micro_config(), tmp_path)
    assert result.finished
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(result.state)))


# The best checkpoint.


class _Evaluator(Evaluator):
    """Returns a step's accuracy, whatever the model."""

    accuracies = (0.1, 0.9, 0.5, 0.2)

    def __init__(self):
        self._left = list(self.accuracies)

    def metrics(self, predictor):
        return {"knn/toy/k20_top1": self._left.pop(0), "knn/toy/chance": 0.1}


@pytest.fixture
def evaluated(monkeypatch):
    """Runs are evaluated by _Evaluator, whatever their config says."""
    monkeypatch.setattr(evaluation, "evaluators", lambda *_: dict(toy=_Evaluator()))
    predictor = types.SimpleNamespace(for_evaluation=lambda variables: None)
    monkeypatch.setattr(evaluation, "predictor", lambda *_: predictor)


@pytest.mark.slow
def test_what_is_evaluated_is_saved_and_the_best_is_kept(evaluated, train, micro_config, tmp_path):
    changes = dict(checkpoint__every=100, checkpoint__keep=1, eval_every=2, evals=dict(toy={}))
    train(micro_config(checkpoint__best="eval/knn/toy/k20_top1", **changes), tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8"}


def test_a_best_that_the_evaluator_does_not_give_is_said_at_the_first(
    evaluated, train, micro_config, tmp_path
):
    message = "checkpoint.best is 'eval/knn/toy/top1'; there are eval/knn/toy/chance, eval/knn/toy/k20_top1$"
    with pytest.raises(requirements.RequirementsError, match=message):
        train(micro_config(checkpoint__best="eval/knn/toy/top1", eval_every=2, evals=dict(toy={})), tmp_path)


def test_a_best_of_no_evaluator_is_said_first():
    evals = dict(a=dict(kind="knn"), emoji=dict(kind="emoji", styles=("twemoji",)))
    for best in ("", "eval/knn/a/k20_top1", "min:eval/retrieval/twemoji_unseen/chance_r1"):
        evaluation.check_best(best, evals)
    with pytest.raises(
        requirements.RequirementsError, match="begin with eval/knn/a/, eval/zero_shot/twemoji/, "
    ):
        evaluation.check_best("eval/zero_shot/openmoji/top1", evals)


def test_a_best_without_evaluators_is_a_warning(capsys):
    evaluation.check_best("eval/zero_shot/twemoji/top1", {})
    assert "nothing is evaluated: no best is kept" in capsys.readouterr().err


# Records that are unusable.


def _spoiled(micro_config, every, what="both", **changes):
    source = dict(kind="spoiled", every=every, what=what, styles=("fxemoji",), concepts="seen")
    return micro_config(streams__pairs__data__source=source, **changes)


@pytest.mark.slow
def test_bad_records_are_replaced_the_same_way_each_time_and_counted(train, micro_config, whole, tmp_path):
    config = _spoiled(micro_config, every=12, failure_limits__replaced_fraction=0.2)
    first, second = (train(config, tmp_path / name) for name in "ab")
    _assert_same(first.state, jax.device_get(second.state))
    counters = jax.device_get(first.state.counters)
    # 128 examples, of which one in 24 each lacks its picture and its caption.
    assert counters["replaced_images"] > 0
    assert counters["replaced_texts"] > 0
    assert counters["replaced_images"] + counters["replaced_texts"] < 25
    last = _train_lines(tmp_path / "a")[-1]
    assert last["train/replaced_images"] == counters["replaced_images"]
    assert last["train/replaced_texts"] == counters["replaced_texts"]


def test_a_run_that_failed_exits_with_one_and_one_line(train, micro_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "train", train)
    assert main.run(_spoiled(micro_config, 4, "image"), str(tmp_path), "micro.py", "command") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "of streams.pairs were unusable and replaced" in error


@pytest.mark.slow
def test_too_many_bad_records_stop_the_run(train, micro_config, tmp_path):
    config = _spoiled(micro_config, 4, "text")
    message = (
        r"step \d+: 2\d\.\d% of the last 1\d\d examples of streams.pairs were unusable and replaced, above"
    )
    with pytest.raises(TrainingFailed, match=message):
        train(config, tmp_path)


@pytest.mark.parametrize(
    ("metrics", "seen", "message"),
    [
        (dict(skipped_in_a_row=9), 1000, ""),
        (dict(skipped_in_a_row=10), 1000, "not finite 10 times in a row"),
        ({"replaced_fraction/small": 0.05}, 1000, ""),
        ({"replaced_fraction/small": 0.051}, 1000, "5.1% of the last 500 examples of streams.small"),
        ({"replaced_fraction/small": 0.9}, 120, "90.0% of the last 120 examples of streams.small"),
        ({"replaced_fraction/small": 0.9}, 99, ""),
        (dict(skipped=500, replaced_images=900), 1000, ""),
        (dict(missing_examples=1), 1, "no usable record for 1 examples"),
    ],
)
def test_limits(metrics, seen, message):
    metrics = collections.defaultdict(int, metrics)
    limits = dict(skipped_in_a_row=10, replaced_fraction=0.05, window_examples=500)
    arguments = (metrics, 7, dict(large=10**6, small=seen), limits)
    if not message:
        check_health(*arguments)
        return
    with pytest.raises(TrainingFailed, match=f"step 7: .*{message}"):
        check_health(*arguments)


# Before anything slow.


@pytest.fixture
def nothing_runs(monkeypatch, set_up):
    """Fails the test that initialises or steps."""

    def never(*_):
        raise AssertionError("computed something")

    patched = lambda config, devices=None, first=0: set_up(config, devices)._replace(init=never, step=never)  # noqa: E731
    monkeypatch.setattr(loop, "set_up", patched)


def test_a_workdir_that_cannot_be_written_is_said_first(nothing_runs, micro_config, tmp_path):
    # Under a file, since root may write into any folder.
    (tmp_path / "file").write_text("")
    with pytest.raises(
        requirements.RequirementsError, match=r"workdir .*/file/run can't be written: Not a directory"
    ):
        loop.train(micro_config(), tmp_path / "file" / "run")


def test_a_full_disk_is_said_first(nothing_runs, micro_config, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(requirements.RequirementsError, match=r"workdir .* has 0\.00 GiB free"):
        loop.train(micro_config(), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_what_the_checkpoints_need_is_what_they_take(whole, set_up, micro_config):
    setup = set_up(micro_config())
    size = requirements.state_bytes(setup.abstract_state)
    assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(whole[0]))
    taken = sum(f.stat().st_size for f in (whole[1] / "checkpoints" / "8").rglob("*") if f.is_file())
    assert taken < size + 2**20  # orbax's own bookkeeping, which does not grow with the arrays


def test_the_config_is_kept_with_the_run(whole, micro_config):
    assert json.loads((whole[1] / "config.json").read_text()) == json.loads(json.dumps(micro_config()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(streams__pairs__batch_size=12), r"streams.pairs.batch_size is 12; .*multiple of .*= 8"),
        (dict(mesh=dict(data=3, fsdp=1, tensor=1)), r"mesh: .* does not divide 8 devices"),
    ],
)
def test_what_does_not_divide_is_said_first(changes, message, micro_config, tmp_path):
    with pytest.raises((ValueError, requirements.RequirementsError), match=message):
        loop.train(micro_config(**changes), tmp_path)


def test_another_models_workdir_is_said_first_and_left_alone(nothing_runs, micro_config, whole):
    checkpoints = sorted(whole[1].rglob("checkpoints/*"))
    config = (whole[1] / "config.json").read_text()
    with pytest.raises(requirements.RequirementsError, match=r"can be read by this config; .*shape"):
        loop.train(micro_config(encoders__text__width=64), whole[1])
    assert sorted(whole[1].rglob("checkpoints/*")) == checkpoints
    assert (whole[1] / "config.json").read_text() == config
