"""Checkpoints: what is kept, and what a damaged one costs."""

import shutil

import jax
import numpy as np
import pytest
from absl import logging

from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.requirements import RequirementsError
from big_ssl.training.state import TrainState

# The files of an orbax checkpoint, by kind; True where the state can't be read without it, so
# that the checkpoint before has to do.
FILES = {
    "_CHECKPOINT_METADATA": False,
    "commit_success.txt": False,
    "state/_METADATA": True,
    "state/_sharding": False,
    "state/commit_success.txt": False,
    "state/manifest.ocdbt": True,
    "state/d/*": True,
    "state/ocdbt.process_0/manifest.ocdbt": False,
    "state/ocdbt.process_0/d/*": True,
    "state/array_metadatas/process_0": True,
}


def _state(step):
    weights = jax.random.normal(jax.random.key(step), (300, 40))
    return TrainState(
        step=jax.numpy.int32(step), params=dict(w=weights), opt_state=(), mutable={}, ema=None, counters={}
    )


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0))


def _saved(folder, steps, keep=3, best="", metrics=lambda step: {}):
    checkpoints = Checkpoints(folder, keep, best)
    for step in steps:
        checkpoints.save(_state(step), metrics(step))
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
    _assert_is(checkpoints.restore_latest(ABSTRACT), 2)
    checkpoints.close()


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path, 2).restore_latest(ABSTRACT) is None


def test_the_newest_comes_back(tmp_path):
    checkpoints = _saved(tmp_path, (1, 2, 10))
    assert checkpoints.steps() == [1, 2, 10]
    _assert_is(checkpoints.restore_latest(ABSTRACT), 10)


def test_the_latest_and_the_best_are_kept(tmp_path):
    accuracy = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.2, 5: 0.4, 6: None}
    metrics = lambda step: {"eval/top1": accuracy[step]} if accuracy[step] else {}  # noqa: E731
    checkpoints = _saved(tmp_path, range(1, 7), keep=2, best="eval/top1", metrics=metrics)
    assert checkpoints.steps() == [2, 5, 6]


def test_without_a_best_only_the_latest_are_kept(tmp_path):
    assert _saved(tmp_path, range(1, 7), keep=2).steps() == [5, 6]


def test_saving_a_step_again_changes_nothing(tmp_path):
    checkpoints = _saved(tmp_path, (1, 2))
    checkpoints.save(_state(2), {})
    checkpoints.close()
    _assert_is(Checkpoints(tmp_path, 3).restore_latest(ABSTRACT), 2)


def test_the_list_of_files_is_whole(two_steps):
    root = two_steps / "checkpoints" / "4"
    listed = {path for pattern in FILES for path in root.glob(pattern)}
    assert {path for path in root.rglob("*") if path.is_file()} == listed


@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
@pytest.mark.parametrize("pattern", FILES)
def test_a_damaged_checkpoint_is_passed_over(pattern, damage, two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    for file in (folder / "checkpoints" / "4").glob(pattern):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
        if damage == "gone":
            file.unlink()
    checkpoints = Checkpoints(folder, 3)
    restored = checkpoints.restore_latest(ABSTRACT)
    set_aside = sorted(path.name.split("_")[0] for path in folder.glob("damaged_checkpoints/*"))
    # array_metadatas may be missing, as older versions wrote none.
    needed = FILES[pattern] and (pattern, damage) != ("state/array_metadatas/process_0", "gone")
    assert set_aside == (["4"] if needed else [])
    _assert_is(restored, 2 if needed else 4)
    checkpoints.save(_state(4), {})
    checkpoints.save(_state(6), {})
    checkpoints.close()
    again = Checkpoints(folder, 3)
    assert again.steps() == [2, 4, 6]
    _assert_is(again.restore_latest(ABSTRACT), 6)
    if needed:
        shutil.rmtree(folder / "checkpoints" / "6")
        _assert_is(Checkpoints(folder, 3).restore_latest(ABSTRACT), 4)


def test_the_warning_is_one_readable_line(two_steps, tmp_path, monkeypatch):
    folder, lines = tmp_path / "run", []
    shutil.copytree(two_steps, folder)
    (folder / "checkpoints" / "4" / "state" / "_METADATA").write_text("")
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    Checkpoints(folder, 3).restore_latest(ABSTRACT)
    (line,) = [line for line in lines if line.startswith("checkpoint 4")]
    assert len(line) < 600
    assert "\n" not in line
    assert "JSONDecodeError" in line  # what happened to the file, and not all that orbax tried
    assert "damaged_checkpoints" in line


def _everything_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_damaged_is_an_error_and_not_a_new_start(two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    for metadata in folder.glob("checkpoints/*/state/_METADATA"):
        metadata.write_text("{")
    before = _everything_in(folder)
    with pytest.raises(RequirementsError, match=r"none of \[2, 4\] in .* can be read .*JSONDecodeError"):
        Checkpoints(folder, 3).restore_latest(ABSTRACT)
    assert _everything_in(folder) == before


def test_another_models_checkpoints_are_left_alone(two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    weights = jax.ShapeDtypeStruct((300, 41), "float32", sharding=ABSTRACT.params["w"].sharding)
    before = _everything_in(folder)
    with pytest.raises(RequirementsError, match=r"\(300, 41\) is not .* the stored shape: \(300, 40\)"):
        Checkpoints(folder, 3).restore_latest(ABSTRACT.replace(params=dict(w=weights)))
    assert _everything_in(folder) == before
    _assert_is(Checkpoints(folder, 3).restore_latest(ABSTRACT), 4)


def test_two_damaged_ones_are_passed_over(tmp_path):
    _saved(tmp_path, (1, 2, 3)).close()
    for step in (2, 3):
        (tmp_path / "checkpoints" / str(step) / "state" / "_METADATA").write_text("")
    checkpoints = Checkpoints(tmp_path, 3)
    _assert_is(checkpoints.restore_latest(ABSTRACT), 1)
    assert checkpoints.steps() == [1]
    set_aside = sorted(path.name.split("_")[0] for path in tmp_path.glob("damaged_checkpoints/*"))
    assert set_aside == ["2", "3"]


def test_a_save_that_was_killed_leaves_no_checkpoint(two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps, folder)
    # What orbax calls a folder until it is complete.
    (folder / "checkpoints" / "4").rename(folder / "checkpoints" / "4.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(folder, 3)
    assert checkpoints.steps() == [2]
    _assert_is(checkpoints.restore_latest(ABSTRACT), 2)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["2"]
