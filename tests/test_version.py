"""Folders that an earlier version wrote: one line names it, and the first key that has changed."""

import json
import re

import pytest

from big_ssl import __version__, main, stored_config, version
from big_ssl.config import ConfigError
from big_ssl.training import trained
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from configs import align_l2
from tests.parity import goldens

BEFORE = "was written by big_ssl 0.1.0; in {now} rates is no known key (see CHANGELOG.md)"


def earlier(config):
    """The config with a key of an earlier version."""
    return {("rates" if key == "lr_multipliers" else key): value for key, value in config.items()}


@pytest.fixture
def workdir(tmp_path):
    """A working directory of an earlier version, without a version file."""
    (tmp_path / "config.json").write_text(json.dumps(earlier(align_l2.get_config("tiny").to_dict())))
    return tmp_path


@pytest.fixture
def message(workdir):
    return f"{workdir}/config.json {BEFORE.format(now=__version__)}"


def test_loading_names_the_version(workdir, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trained.load(workdir)


def test_a_stored_config_names_the_version(workdir, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stored_config.get_config(str(workdir / "config.json"))


def test_training_in_the_workdir_names_the_version(workdir, message, capsys):
    config = align_l2.get_config("tiny").to_dict()
    assert main.run(config, str(workdir), "configs/align_l2.py:tiny", "command") == 2
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert "rates" in json.loads((workdir / "config.json").read_text())  # nothing was written


def test_a_mistake_under_this_version_keeps_its_suggestion(workdir):
    version.write(workdir)
    with pytest.raises(ConfigError, match=rf"^{workdir}/config.json: rates is no known key; did you mean"):
        stored_config.check(json.loads((workdir / "config.json").read_text()), workdir)


def test_another_versions_valid_config_is_taken(tmp_path):
    config = align_l2.get_config("tiny").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / version.FILE).write_text("0.1.5\n")
    assert stored_config.get_config(str(tmp_path / "config.json")).to_dict() == config


def test_converted_weights_name_the_version(tmp_path):
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    write_checkpoint("big_ssl", tmp_path / "out", config, ours)
    assert version.written_by(tmp_path / "out") == __version__
    file = tmp_path / "out" / "config.json"
    written = json.loads(file.read_text())
    written["head"]["dim"] = written["head"].pop("embed_dim")
    file.write_text(json.dumps(written))
    (tmp_path / "out" / version.FILE).unlink()
    with pytest.raises(WeightsError, match=r"as big_ssl of version 0\.1\.0: .*argument 'dim'$"):
        read_checkpoint("big_ssl", tmp_path / "out")
