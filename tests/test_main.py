"""The train command: exit codes and messages."""

import json
import types

import pytest

from big_ssl import main
from big_ssl.training import loop, memory, requirements
from configs.align_l2 import get_config
from tests import commands

FILE = "configs/align_l2.py"


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Fails a test that builds the model."""

    def never(*_, **__):
        raise AssertionError("went on to build the run")

    monkeypatch.setattr(loop, "set_up", never)


def _run(config, workdir):
    return main.run(config, str(workdir), FILE, "command")


@pytest.mark.smoke
def test_the_full_recipe_lists_its_requirements_and_a_preset_that_runs(
    nothing_compiles, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(requirements.Machine, "current", lambda: requirements.Machine(8, "cpu", 32 * 2**30))
    assert _run(get_config().to_dict(), tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert message.startswith("align_l2 cannot run on this machine. It needs\n")
    assert "GiB on each device for the state and a step, of 8 x cpu of " in message
    assert "'image_text_pairs', config.streams.pairs.data.source.data_dir (not set)" in message
    assert "config.tokenizer.vocabulary (not set)" in message
    assert message.endswith("Runs here: --config=configs/align_l2.py:demo\n")
    assert not (tmp_path / "run").exists()


def test_a_data_dir_without_the_dataset_is_an_error(nothing_compiles, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(requirements.memory, "count", lambda *_: memory.Memory(0, 0, 0, 0))
    config = get_config().to_dict()
    config["streams"]["pairs"]["data"]["source"]["data_dir"] = str(tmp_path)
    assert _run(config, tmp_path / "run") == 2
    assert f"(nothing in {tmp_path})" in capsys.readouterr().err


def test_too_little_memory_is_an_error(nothing_compiles, tmp_path, capsys, monkeypatch):
    machine = requirements.Machine(8, "cpu", 2**20)
    monkeypatch.setattr(requirements.Machine, "current", lambda: machine)
    assert _run(get_config("tiny").to_dict(), tmp_path / "run") == 2
    assert "for the state on each device, of 8 x cpu of 0.000977 GiB" in capsys.readouterr().err


def test_an_invalid_config_is_an_error(nothing_compiles, tmp_path, capsys):
    config = get_config("tiny").to_dict() | dict(total_step=3)
    assert _run(config, tmp_path / "run") == 2
    assert capsys.readouterr().err == "total_step is no known key; did you mean total_steps?\n"


def test_a_config_that_differs_between_hosts_is_an_error_on_all(
    nothing_compiles, tmp_path, capsys, monkeypatch
):
    config = get_config("tiny").to_dict()
    other = json.dumps(config | dict(total_steps=21), sort_keys=True)
    monkeypatch.setattr(requirements.distributed, "gather", lambda text: [text, text and other])
    assert _run(config, tmp_path / "run") == 2
    message = (
        "config.total_steps is 20 on process 0 and 21 on process 1; all processes need the same command\n"
    )
    assert capsys.readouterr().err == message


def test_a_batch_that_does_not_divide_is_an_error(tmp_path, capsys):
    config = get_config("tiny").to_dict()
    config["streams"]["pairs"]["batch_size"] = 12
    assert _run(config, tmp_path / "run") == 2
    assert capsys.readouterr().err.startswith("streams.pairs.batch_size is 12; it must be a multiple of")


def test_a_failing_report_does_not_change_the_exit_code(tmp_path, monkeypatch, caplog):
    """A supervisor would restart a finished run forever."""

    def failing(*_):
        raise FileNotFoundError("no metrics.jsonl\nand more")

    monkeypatch.setattr(main, "train", lambda *_: types.SimpleNamespace(finished=True, config={}))
    monkeypatch.setattr(main, "check_requirements", lambda *_: None)
    monkeypatch.setattr(main, "write_run_report", failing)
    assert _run(get_config("tiny").to_dict(), tmp_path) == 0
    (message,) = (each.getMessage() for each in caplog.records if each.levelname == "ERROR")
    assert message == (
        "no report: FileNotFoundError: no metrics.jsonl; training is complete, and this writes it "
        "again: command"
    )


def test_the_error_for_a_failing_bucket_is_one_line(tmp_path, capsys, monkeypatch):
    class HttpError(Exception):
        code = 503

    def fail(*_):
        raise HttpError("Service Unavailable\nmore")

    monkeypatch.setattr(main, "train", fail)
    config = get_config("tiny").to_dict()
    assert main.run(config, str(tmp_path), "configs/align_l2.py", "command") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"workdir {tmp_path} (")
    assert line.endswith("): HttpError: Service Unavailable")
    assert "HttpError" in (tmp_path / "failure_0.txt").read_text()


def test_the_error_for_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(main, "train", failing)
    monkeypatch.setattr(main, "check_requirements", lambda *_: None)
    # The traceback can't be written either.
    (tmp_path / "failure_0.txt").mkdir()
    assert _run(get_config("tiny").to_dict(), tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"workdir {tmp_path} (")
    assert line.endswith("GiB free): OSError: [Errno 28] No space left on device: 'metrics.jsonl'")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((f"--config={FILE}:tiny", "--config.total_step=3"), "total_step"),
        (
            (f"--config={FILE}:tyni",),
            "align_l2: no preset 'tyni'; there are demo, tiny, rehearsal and multilingual",
        ),
        (("--config=configs/none.py",), "configs/none.py"),
        ((f"--config={FILE}:tiny", "--config.total_steps=many"), "total_steps"),
    ],
)
def test_the_error_for_a_wrong_flag_is_one_line(arguments, named, tmp_path):
    result = commands.run("big_ssl.main", *arguments, f"--workdir={tmp_path}/run")
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr


def test_the_full_recipe_from_the_command_line(tmp_path):
    result = commands.run("big_ssl.main", f"--config={FILE}", f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    assert result.stderr.startswith("align_l2 cannot run on this machine. It needs")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
