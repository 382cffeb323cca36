"""The runs that compare clean with noisy text: what differs between them, and that none is trained twice."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import noise_runs, resumable
from benchmarks.noise_runs import METRICS, Data, Run
from big_ssl.config import ConfigError
from big_ssl.data import sources
from configs.align_l2 import get_config

ROOT = pathlib.Path(__file__).parents[2]
EMOJI = dict(kind="emoji", styles=("fxemoji",), concepts="seen", languages=("de", "ja"))
KINDS = dict(clean="label", noisy="noisy")
RUNS = [Run(text, size, 3) for size in noise_runs.SIZES for text in KINDS]


def _configs(steps=8):
    base = get_config("tiny").to_dict()
    data = Data(EMOJI, KINDS, base["tokenizer"])
    return {run: noise_runs.run_config(base, run, data, steps) for run in RUNS}


def test_the_runs_differ_in_their_pictures_and_texts_alone():
    configs = _configs()
    for run, config in configs.items():
        data = config["streams"]["pairs"]["data"]
        assert data["fields"].pop("text")["captions"] == {KINDS[run.text]: 1.0}
        assert data.pop("source") == dict(EMOJI, share=run.size / 4)
        assert config.pop("name") == f"{run.text}_{run.size}x_seed3"
    assert all(config == configs[RUNS[0]] for config in configs.values())
    assert (configs[RUNS[0]]["seed"], configs[RUNS[0]]["total_steps"]) == (3, 8)
    assert configs[RUNS[0]]["learning_rate"]["warmup_steps"] == 2


def test_the_parts_of_other_sources():
    parquet = dict(kind="parquet", path="a.parquet")
    assert noise_runs.part(parquet, 1) == dict(parquet, share=0.25)
    tfds = dict(kind="tfds", name="pairs", split="train")
    assert [noise_runs.part(tfds, size)["split"] for size in (1, 2, 4)] == [
        "train[:25%]",
        "train[:50%]",
        "train[:100%]",
    ]
    base = get_config("tiny").to_dict()
    folder = Data(dict(kind="image_folder", path="a"), KINDS, base["tokenizer"])
    with pytest.raises(ConfigError, match="share is no known key"):
        noise_runs.run_config(base, RUNS[0], folder, 8)


def test_one_vocabulary_for_both_texts(tmp_path):
    path = tmp_path / "wordpiece.txt"
    size = noise_runs.vocabulary(path, EMOJI, KINDS, 2_000)
    words = path.read_text().splitlines()
    assert len(words) == size <= 2_000
    assert {"red", "tier"} < set(words)
    path.write_text("kept\n")
    assert noise_runs.vocabulary(path, EMOJI, KINDS, 2_000) == 1
    with pytest.raises(ValueError, match="no record has a text of the kind 'alt'; there are label, name"):
        noise_runs.vocabulary(tmp_path / "other", EMOJI, dict(clean="label", noisy="alt"), 2_000)


@pytest.fixture
def trained(monkeypatch):
    """The folders that loop.train was called for; it writes what a run would of its end."""
    folders = []

    def train(config, folder):
        folders.append(folder.name)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        step = config["total_steps"]
        lines = [
            {"step": step - 1, "eval/earlier": 1.0},
            {"step": step, "eval/a": 0.5},
            {"step": step, "train/b": 2},
        ]
        finished = "noisy" not in folder.name
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines[: 3 * finished]))
        return resumable.loop.Result({}, None, None, {}, None, finished)

    monkeypatch.setattr(resumable.loop, "train", train)
    return folders


def test_a_finished_run_is_not_trained_again(trained, tmp_path):
    config = _configs()[RUNS[0]]
    for _ in range(2):
        assert resumable.result(config, tmp_path / "run") == {"eval/a": 0.5, "train/b": 2}
    assert trained == ["run"]
    with pytest.raises(ValueError, match="run holds a run with other settings; choose another --output"):
        resumable.result(config | dict(seed=4), tmp_path / "run")


def test_a_run_that_was_stopped_is_not_taken_for_finished(trained, tmp_path):
    for _ in range(2):
        with pytest.raises(resumable.Stopped):
            resumable.result(_configs()[RUNS[1]], tmp_path / "noisy")
        (tmp_path / "noisy" / "config.json").unlink()
        (tmp_path / "noisy" / "metrics.jsonl").unlink()
        (tmp_path / "noisy").rmdir()
    assert trained == ["noisy", "noisy"]


def _results():
    """Noisy text from a tenth to the same, the second seed a tenth better."""
    return {
        run: dict.fromkeys(
            METRICS, run.size / 10 * (1 if run.text == "noisy" else 4 / run.size) + run.seed / 10
        )
        | dict.fromkeys(noise_runs._CHANCE.values(), 0.01)
        for run in (run._replace(seed=seed) for run in RUNS for seed in (0, 1))
    }


def test_what_is_drawn_are_the_means_over_the_seeds():
    figure = noise_runs.plot(_results(), "a long title, " * 20)
    figure.draw_without_rendering()
    assert figure.get_suptitle().count("long") == 20
    assert figure._suptitle.get_window_extent().x1 < figure.bbox.x1
    assert len(figure.subfigs) == len(METRICS)
    for part in figure.subfigs:
        clean, noisy, chance = part.axes[0].get_lines()
        np.testing.assert_array_equal(clean.get_xdata(), [1, 2, 4])
        np.testing.assert_allclose(clean.get_ydata(), [0.45, 0.45, 0.45])
        np.testing.assert_allclose(noisy.get_ydata(), [0.15, 0.25, 0.45])
        assert set(chance.get_ydata()) == {0.01}


def test_some_runs_are_drawn_before_the_others_are_there():
    results = {run: value for run, value in _results().items() if run.text == "clean"}
    assert [len(part.axes[0].get_lines()) for part in noise_runs.plot(results, "").subfigs] == [2] * len(
        METRICS
    )


def _run(*arguments):
    command = [sys.executable, "-m", "benchmarks.noise_vs_scale", "--preset=tiny", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = _run("--source.kind=image_folder", "--source.path=nowhere", f"--output={tmp_path}")
    message = "source.text_keys is no known key; there are path, orientation, alpha, suffixes\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.soak
def test_six_runs_of_real_noisy_captions_and_none_twice(tmp_path):
    sample = "--source.path=tests/data/openclipart_sample.parquet"
    arguments = (
        *("--source.kind=parquet", sample, "--clean=title", "--noisy=keywords"),
        *("--steps=2", f"--output={tmp_path}"),
    )
    done = _run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "noisy at 4x is" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(run["text"], run["size"]) for run in results["runs"]] == [(run.text, run.size) for run in RUNS]
    assert all(METRICS.keys() <= run["metrics"].keys() for run in results["runs"])
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    again = _run(*arguments)
    assert again.returncode == 0
    assert "loss" not in again.stdout + again.stderr
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_the_smallest_part_has_every_kind_of_text():
    source = sources.build(noise_runs.part(EMOJI, 1))
    assert all(source[i][kind] for i in range(len(source)) for kind in KINDS.values())
