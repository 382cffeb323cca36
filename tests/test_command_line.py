"""Command lines with --config: stored configs, changed kinds, and one-line errors."""

import json
import re
import sys
import types

import numpy as np
import pytest
from absl import flags
from PIL import Image

from big_ssl import command_line, main, stored_config
from big_ssl.config import validate
from big_ssl.parallel import hardware
from configs import align_l2, ibot
from tests import compiling

PICTURES = "streams.images.data.source"


def changed(recipe, *arguments):
    """The recipe's tiny preset with these flags, all of which must be consumed."""
    config = recipe.get_config("tiny")
    rest, changes = command_line.split_kinds(arguments)
    assert not rest
    for path, options in changes:
        command_line.change_kind(config, path, options)
    validate(config.to_dict())
    assert config.is_locked
    return config.to_dict()


def test_a_stored_config_equals_its_recipe(tmp_path):
    config = align_l2.get_config("tiny").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_config.get_config(str(tmp_path / "config.json")).to_dict() == config


@pytest.mark.parametrize("text", ["[1, 2]", "{"])
def test_the_error_for_json_that_is_no_config_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        stored_config.get_config(str(tmp_path / "config.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["--config=runs/a/config.json"], "runs/a/config.json"),
        (["-config=gs://bucket/a/config.json"], "gs://bucket/a/config.json"),
        (["--workdir=x", "--config", "config.json"], "config.json"),
        (["--config=configs/clip.py:demo"], None),
        (["--json=plan.json"], None),
        (["--output", "a.json"], None),
    ],
)
def test_json_files_are_recognised(arguments, file):
    actual = command_line.redirect_json(arguments)
    assert len(actual) == len(arguments)
    changed = [new for new, old in zip(actual, arguments, strict=True) if new != old]
    assert [argument.rpartition("stored_config.py:")[2] for argument in changed] == ([file] if file else [])


def test_another_kind_replaces_the_recipes_source():
    config = changed(ibot, f"--config.{PICTURES}.kind=image_folder", f"--config.{PICTURES}.path=1977")
    assert config["streams"]["images"]["data"]["source"] == dict(kind="image_folder", path="1977")


def test_another_kind_keeps_shared_options():
    config = changed(ibot, f"--config.{PICTURES}.kind=emoji_concepts")
    source = config["streams"]["images"]["data"]["source"]
    assert source == dict(kind="emoji_concepts", styles=("fxemoji",), concepts="seen")


def test_a_changed_kind_keeps_options_without_a_flag():
    config = changed(align_l2, "--config.learning_rate.kind=linear", "--config.learning_rate.peak=1e-4")
    expected = align_l2.get_config("tiny").to_dict()["learning_rate"] | dict(kind="linear", peak=1e-4)
    assert config["learning_rate"] == expected


def test_a_number_can_become_a_kind():
    config = changed(align_l2, "--config.optimizer.weight_decay.kind=steps",
                     "--config.optimizer.weight_decay.values=((0, 0.1),)")  # fmt: skip
    assert config["optimizer"]["weight_decay"] == dict(kind="steps", values=((0, 0.1),))


def test_an_evaluator_and_its_data_can_change_together():
    config = changed(
        ibot,
        "--config.evals.fxemoji.test.kind=image_folder",
        "--config.evals.fxemoji.test.path=a",
        "--config.evals.fxemoji.kind=knn",
        "--config.evals.fxemoji.ks=(5,)",
    )
    assert config["evals"]["fxemoji"]["test"] == dict(kind="image_folder", path="a")
    assert config["evals"]["fxemoji"]["ks"] == (5,)


def test_the_error_names_a_path_missing_from_the_config():
    with pytest.raises(KeyError, match=r"config\.streams\.pairs\.data\.source: pairs is no key of"):
        changed(ibot, "--config.streams.pairs.data.source.kind=emoji")


def test_the_error_names_a_changed_path_that_the_config_lacks(capsys):
    argv = ["x", "--config=configs/clip.py:tiny", "--config.streams.pairs.data.source.path=X"]
    with pytest.raises(SystemExit):
        command_line.parse_flags(argv)
    assert capsys.readouterr().err == (
        "config.streams.pairs.data.source.path: config.streams.pairs.data.source has no 'path'; "
        "it has concepts, kind, styles\n"
    )


def test_other_flags_are_unchanged():
    arguments = ["main", "--workdir=x", "--config=a.py", "--config.seed=1", "--config.ema.kind=warmup"]
    rest, changes = command_line.split_kinds([*arguments, "--config.ema.momentum=0.9"])
    assert rest == arguments[:-1]
    assert changes == [("ema", dict(kind="warmup", momentum="0.9"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(arg=''):\n    return dict(a=1\n", r"line 2: '\(' was never closed"),
        ("from configs import nothing", r"line 1: ImportError: cannot import name 'nothing' from 'configs' .*"
         r"the package configs is .*: start in the folder of big_ssl's own, or rename the other"),
        ("def get_config():\n    return 1 / 0", r"line 2: ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_the_error_in_a_config_file_is_one_line(text, expected, tmp_path, capsys, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(text)
    # Like a command, but with separate flags.
    values = flags.FlagValues()
    config = command_line.config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr(command_line, "CONFIG", config)
    monkeypatch.setattr(command_line, "flags", types.SimpleNamespace(FLAGS=values, Error=flags.Error))
    with pytest.raises(SystemExit) as caught:
        command_line.parse_flags([sys.argv[0], f"--config={file}"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(str(file))
    assert re.search(expected, line), line


def test_the_error_for_a_missing_platform_is_one_line(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu.so\nand more")

    monkeypatch.setattr(hardware.jax, "devices", fail)
    with pytest.raises(
        hardware.BackendError, match=r"^JAX_PLATFORMS=cpu: Unable to initialize backend 'tpu'.*so$"
    ):
        hardware.check_backend()


@pytest.mark.slow
def test_a_demo_runs_on_ones_own_pictures_and_stores_its_config(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    config = changed(ibot, f"--config.{PICTURES}.kind=image_folder", f"--config.{PICTURES}.path={folder}")
    config.update(total_steps=4, evals={})
    with compiling.quickly():
        assert main.run(config, str(tmp_path / "run"), "configs/ibot.py:tiny", "command") == 0
    again = stored_config.get_config(str(tmp_path / "run" / "config.json"))
    assert again.to_dict() == config
