"""Checkpoints: preservation, damage and slow storage."""

import math
import pathlib
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from absl import logging

from big_ssl import io, retry
from big_ssl.training import checkpoints as checkpoints_lib
from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.requirements import RequirementsError
from big_ssl.training.state import TrainState
from big_ssl.training.stopping import TrainingFailed

# (pattern of files, damage): files that the state needs, and one that it does not need.
DAMAGED = [
    ("state/_METADATA", "half"),
    ("state/_METADATA", "gone"),
    ("state/manifest.ocdbt", "empty"),
    ("state/d/*", "gone"),
    ("state/ocdbt.process_0/d/*", "half"),
    ("state/array_metadatas/process_0", "half"),
]
HARMLESS = [("_CHECKPOINT_METADATA", "gone"), ("state/_sharding", "half")]


def _state(step):
    weights = jax.random.normal(jax.random.key(step), (300, 40))
    return TrainState(
        step=jax.numpy.int32(step), params=dict(w=weights), opt_state=(), mutable={}, ema=None, counters={}
    )


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0))


def _saved(folder, steps, keep=3, best="", metrics=lambda step: {}):
    checkpoints = Checkpoints(folder, keep, best)
    for step in steps:
        checkpoints.save(_state(step))
        checkpoints.record(step, metrics(step))
    checkpoints.close()
    return Checkpoints(folder, keep, best)


def _assert_is(state, step):
    assert int(state.step) == step
    np.testing.assert_array_equal(state.params["w"], _state(step).params["w"])


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_steps")
    _saved(folder, (2, 4)).close()
    return folder


def test_a_relative_workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = _saved("runs/one", (2,))
    _assert_is(checkpoints.restore_latest(lambda step: ABSTRACT), 2)
    checkpoints.close()


def test_restoring_without_checkpoints_returns_none(tmp_path):
    assert Checkpoints(tmp_path, 2).restore_latest(lambda step: ABSTRACT) is None


def test_the_newest_checkpoint_is_restored(tmp_path):
    checkpoints = _saved(tmp_path, (1, 2, 10))
    assert checkpoints.steps() == [1, 2, 10]
    _assert_is(checkpoints.restore_latest(lambda step: ABSTRACT), 10)


ACCURACY = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.2, 5: 0.4, 6: None, 7: math.nan}


def _metrics(step):
    return {"eval/top1": ACCURACY[step]} if ACCURACY[step] else {}


@pytest.mark.parametrize(("best", "kept"), [("eval/top1", [2, 6, 7]), ("min:eval/top1", [1, 6, 7])])
def test_the_latest_and_the_best_are_kept(best, kept, tmp_path):
    assert _saved(tmp_path, ACCURACY, keep=2, best=best, metrics=_metrics).steps() == kept


def test_the_best_is_still_kept_after_a_restart(tmp_path):
    for step in ACCURACY:
        _saved(tmp_path, (step,), keep=1, best="eval/top1", metrics=_metrics).close()
    assert Checkpoints(tmp_path, 1, "eval/top1").steps() == [2, 7]
    # With another metric, the existing checkpoints have no recorded value.
    other = Checkpoints(tmp_path, 1, "min:eval/loss")
    other.save(_state(8))
    other.close()
    assert other.steps() == [8]


def test_a_deleted_best_checkpoint_is_replaced(tmp_path):
    _saved(tmp_path, (1, 2), keep=2, best="eval/top1", metrics=_metrics).close()
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    again = _saved(tmp_path, (3, 4, 5), keep=1, best="eval/top1", metrics=_metrics)
    assert again.steps() == [3, 5]


def test_without_a_best_only_the_latest_are_kept(tmp_path):
    assert _saved(tmp_path, range(1, 7), keep=2).steps() == [5, 6]


def test_saving_a_step_again_changes_nothing(tmp_path):
    checkpoints = _saved(tmp_path, (1, 2))
    checkpoints.save(_state(2))
    checkpoints.close()
    _assert_is(Checkpoints(tmp_path, 3).restore_latest(lambda step: ABSTRACT), 2)


def _run_with_damage(two_steps, folder, pattern, damage):
    shutil.copytree(two_steps, folder)
    files = list((folder / "checkpoints" / "4").glob(pattern))
    assert files
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
        if damage == "gone":
            file.unlink()


def _set_aside(folder):
    return sorted(path.name.split("_")[0] for path in folder.glob("damaged_checkpoints/*"))


@pytest.mark.parametrize(("pattern", "damage"), DAMAGED)
def test_a_damaged_checkpoint_is_skipped(pattern, damage, two_steps, tmp_path):
    folder = tmp_path / "run"
    _run_with_damage(two_steps, folder, pattern, damage)
    checkpoints = Checkpoints(folder, 3)
    _assert_is(checkpoints.restore_latest(lambda step: ABSTRACT), 2)
    assert _set_aside(folder) == ["4"]
    for step in (4, 6):
        checkpoints.save(_state(step))
    checkpoints.close()
    again = Checkpoints(folder, 3)
    assert again.steps() == [2, 4, 6]
    _assert_is(again.restore_latest(lambda step: ABSTRACT), 6)


@pytest.mark.parametrize(("pattern", "damage"), HARMLESS)
def test_damage_to_unneeded_files_is_ignored(pattern, damage, two_steps, tmp_path):
    folder = tmp_path / "run"
    _run_with_damage(two_steps, folder, pattern, damage)
    _assert_is(Checkpoints(folder, 3).restore_latest(lambda step: ABSTRACT), 4)
    assert _set_aside(folder) == []


def test_the_warning_is_one_line_with_the_cause(two_steps, tmp_path, monkeypatch):
    folder, lines = tmp_path / "run", []
    shutil.copytree(two_steps, folder)
    (folder / "checkpoints" / "4" / "state" / "_METADATA").write_text("")
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    Checkpoints(folder, 3).restore_latest(lambda step: ABSTRACT)
    (line,) = [line for line in lines if line.startswith("checkpoint 4")]
    assert len(line) < 600
    assert "\n" not in line
    assert "JSONDecodeError" in line  # the file's damage, not all that orbax tried
    assert "damaged_checkpoints" in line


def _everything_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_damaged_checkpoints_are_an_error_and_no_restart(two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    for metadata in folder.glob("checkpoints/*/state/_METADATA"):
        metadata.write_text("{")
    before = _everything_in(folder)
    with pytest.raises(RequirementsError, match=r"none of \[2, 4\] in .* can be read .*JSONDecodeError"):
        Checkpoints(folder, 3).restore_latest(lambda step: ABSTRACT)
    assert _everything_in(folder) == before


def test_another_models_checkpoints_are_not_moved(two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    weights = jax.ShapeDtypeStruct((300, 41), "float32", sharding=ABSTRACT.params["w"].sharding)
    before = _everything_in(folder)
    with pytest.raises(RequirementsError, match=r"\(300, 41\) is not .* the stored shape: \(300, 40\)"):
        Checkpoints(folder, 3).restore_latest(lambda step: ABSTRACT.replace(params=dict(w=weights)))
    assert _everything_in(folder) == before
    _assert_is(Checkpoints(folder, 3).restore_latest(lambda step: ABSTRACT), 4)


def test_two_damaged_checkpoints_are_skipped(tmp_path):
    _saved(tmp_path, (1, 2, 3)).close()
    for step in (2, 3):
        (tmp_path / "checkpoints" / str(step) / "state" / "_METADATA").write_text("")
    checkpoints = Checkpoints(tmp_path, 3)
    _assert_is(checkpoints.restore_latest(lambda step: ABSTRACT), 1)
    assert checkpoints.steps() == [1]
    assert _set_aside(tmp_path) == ["2", "3"]


def test_a_killed_save_leaves_no_checkpoint(two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    # orbax's name of an incomplete folder.
    (folder / "checkpoints" / "4").rename(folder / "checkpoints" / "4.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(folder, 3)
    assert checkpoints.steps() == [2]
    _assert_is(checkpoints.restore_latest(lambda step: ABSTRACT), 2)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["2"]


# Storage that does not answer.


def _refusing(monkeypatch, errors):
    """Checkpoints whose storage raises one of these at each reading of a state, then answers.

    Returns the pauses that were made."""
    pauses, left, load = [], list(errors), Checkpoints._load
    monkeypatch.setattr(retry, "sleep", pauses.append)

    def loaded(self, step, abstract_state):
        if left:
            raise left.pop(0)
        return load(self, step, abstract_state)

    monkeypatch.setattr(Checkpoints, "_load", loaded)
    return pauses


def _unavailable(*_):
    """orbax's error for tensorstore's of an overloaded bucket."""
    try:
        raise ValueError("UNAVAILABLE: Error reading gs://bucket/run: HTTP response code: 503")
    except ValueError as error:
        outer = KeyError("Failed to load checkpointable: state")
        outer.__cause__ = error
        return outer


def test_a_slow_storage_is_no_damage(two_steps, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    pauses = _refusing(monkeypatch, [_unavailable(), ConnectionResetError(), TimeoutError()])
    _assert_is(Checkpoints(folder, 3).restore_latest(lambda step: ABSTRACT), 4)
    assert len(pauses) == 3
    assert _set_aside(folder) == []


@pytest.mark.parametrize(
    "error",
    [
        _unavailable(),
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
        ValueError("PERMISSION_DENIED: Error reading gs://bucket/run: HTTP response code: 403"),
        MemoryError("no room"),
    ],
    ids=repr,
)
def test_errors_that_prove_no_damage_end_the_run_and_move_nothing(error, two_steps, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    before = _everything_in(folder)
    _refusing(monkeypatch, [error] * 100)
    with pytest.raises(TrainingFailed, match=r"^checkpoint 4 in .* can't be read now, and may be whole: .*"):
        Checkpoints(folder, 3).restore_latest(lambda step: ABSTRACT)
    assert _everything_in(folder) == before


# Several hosts.


def test_hosts_with_different_checkpoints_fail(two_steps, monkeypatch):
    """Each would restore its own newest, and resume from another step."""
    checkpoints = Checkpoints(two_steps, 3)
    gather = checkpoints_lib.distributed.gather
    texts = lambda text: ["[2, 4]", "[2]"] if text == "[2, 4]" else gather(text)  # noqa: E731
    monkeypatch.setattr(checkpoints_lib.distributed, "gather", texts)
    message = r"has the checkpoints \[2, 4\] for process 0 and \[2\] for process 1; the same command"
    with pytest.raises(TrainingFailed, match=message):
        checkpoints.restore_latest(lambda step: ABSTRACT)
    checkpoints.close()


def test_recorded_metrics_unreadable_on_one_host_are_an_error_on_all(two_steps, monkeypatch):
    """The others would wait for it in orbax's barrier."""
    monkeypatch.setattr(checkpoints_lib.distributed, "gather", lambda _: ["", "OSError: no answer"])
    with pytest.raises(TrainingFailed, match=r"^process 1: OSError: no answer$"):
        Checkpoints(two_steps, 3, "eval/top1")


def test_reading_recorded_metrics_is_retried(tmp_path, monkeypatch):
    checkpoints = _saved(tmp_path, (2,), best="eval/top1", metrics=_metrics)
    read, errors = type(checkpoints._recorded_path).read_text, [TimeoutError()]
    checkpoints.close()
    monkeypatch.setattr(retry, "sleep", lambda _: None)
    monkeypatch.setattr(
        type(checkpoints._recorded_path),
        "read_text",
        lambda path, *options, **more: _raise(errors.pop()) if errors else read(path, *options, **more),
    )
    again = Checkpoints(tmp_path, 3, "eval/top1")
    assert again.best_step([2]) == 2
    again.close()


def _raise(error):
    raise error


# Resources that a save leaves open, and failing writes.


def test_saves_leave_no_descriptors_and_no_threads(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)

    def left():
        checkpoints.wait()
        return len(list(pathlib.Path("/proc/self/fd").iterdir())), threading.active_count()

    for step in range(3):
        checkpoints.save(_state(step))
    before = left()
    for step in range(3, 15):
        checkpoints.save(_state(step))
    descriptors, threads = left()
    assert descriptors - before[0] < 5
    assert threads - before[1] < 3
    checkpoints.close()


def test_the_error_for_a_full_disk_is_one_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(_state(1))
    checkpoints.wait()

    class _Answer:
        def result(self):
            raise OSError(28, "No space left on device", "d/123")

    monkeypatch.setattr(checkpoints._checkpointer, "save_async", lambda *_: _Answer())
    checkpoints.save(_state(2))
    with pytest.raises(TrainingFailed) as failed:
        checkpoints.wait()
    (line,) = str(failed.value).splitlines()
    assert line.startswith(f"checkpoint 2 can't be saved: {tmp_path} (")
    assert "GiB free): OSError: [Errno 28] No space left on device" in line
    checkpoints.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("eval/a/b/c", ("eval/a/b/c", 1)), ("min:eval/a/b/c", ("eval/a/b/c", -1))],
)
def test_parse_best(text, expected):
    assert checkpoints_lib.parse_best(text) == expected


def test_a_killed_saves_remains_in_a_bucket_are_deleted_and_the_folder_stays(gcs_folder):
    """orbax lists the folder at the same time; in a bucket it disappears with its last file."""
    folder = io.as_path(gcs_folder) / "checkpoints"
    left = folder / "2" / "state" / "manifest.ocdbt"
    io.write_atomically(left, b"")
    checkpoints, deadline = Checkpoints(gcs_folder, 2), time.monotonic() + 30
    while left.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left.exists()
    assert folder.exists()
    assert checkpoints.steps() == []
    checkpoints.close()
