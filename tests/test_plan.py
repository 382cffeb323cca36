"""The plan command: exit codes, messages, and real compilations if libtpu is installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from big_ssl import plan
from big_ssl.planning import topology
from configs.align_l2 import get_config
from tests import commands

ROOT = pathlib.Path(__file__).parents[1]
TINY = "--config=configs/align_l2.py:tiny"
MICRO = "--config=tests/training/micro.py"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install libtpu"
)


@pytest.fixture
def no_compiler(monkeypatch):
    """Fails a test that loads the compiler."""

    def never(chips):
        raise AssertionError(f"went on to load the compiler for {chips}")

    monkeypatch.setattr(topology, "devices", never)


def test_an_invalid_topology_is_an_error(no_compiler, capsys):
    assert plan.run(get_config("tiny").to_dict(), "v5e-256") == 2
    assert capsys.readouterr().err.startswith("--topology=v5e-256: write a generation")


def test_an_invalid_config_is_an_error(no_compiler, capsys):
    assert plan.run(get_config("tiny").to_dict() | dict(total_step=3), "v5e:2x2") == 2
    assert capsys.readouterr().err == "total_step is no known key; did you mean total_steps?\n"


def test_a_missing_compiler_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert plan.run(get_config("tiny").to_dict(), "v5e:2x2") == 2
    assert capsys.readouterr().err == "planning needs the TPU compiler: pip install libtpu\n"


def _command(*arguments):
    # A user's environment, without the tests' eight CPU devices.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_", "XLA_"))}
    return subprocess.run(
        [sys.executable, "-m", "big_ssl.plan", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((TINY,), "--topology"),
        ((TINY, "--topology=v5e:3x3"), "v5e comes in meshes of"),
        (("--config=configs/align_l2.py:tyni", "--topology=v5e:2x2"), "no preset 'tyni'"),
    ],
)
def test_the_error_for_a_wrong_flag_is_one_line(arguments, named):
    result = commands.run("big_ssl.plan", *arguments)
    assert result.returncode != 0
    assert named in result.stderr
    assert "Traceback" not in result.stderr


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices"), [("v5e:2x2", 4), ("v4:2x2x1", 4), ("2xv5e:2x2", 8)])
def test_a_real_plan(name, devices, tmp_path):
    result = _command(MICRO, f"--topology={name}", f"--json={tmp_path}/plan.json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    record = json.loads((tmp_path / "plan.json").read_text())
    assert None not in record.values()
    assert (record["topology"], record["devices"], record["fits"]) == (name, devices, True)
    assert 0 < record["argument_bytes"] < record["peak_bytes_per_device"] < record["hbm_limit_bytes"]
    # All gradients are summed over all devices; this step's other collectives are small.
    assert sum(record["collective_bytes_per_step"].values()) >= 4 * record["params"]
    # The compiled step omits products with padding, and nothing else.
    assert 0.7 < record["compiled_flops_per_step"] / record["model_flops_per_step"] < 1.5
    assert record["estimated_step_seconds"] > 0


@needs_libtpu
@pytest.mark.slow
def test_a_real_step_that_does_not_fit(tmp_path):
    result = _command(
        MICRO,
        "--topology=v5e:2x2",
        f"--json={tmp_path}/plan.json",
        "--config.streams.pairs.batch_size=131072",
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "does not fit: it takes" in result.stdout
    assert "--config.streams.pairs.batch_size=" in result.stdout
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["fits"] is False
    assert record["peak_bytes_per_device"] > record["hbm_limit_bytes"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("generation", topology.GENERATIONS)
def test_the_hardware_table_contains_every_generation(generation):
    smallest = {"v4": "v4:2x2x1", "v5p": "v5p:2x2x1"}.get(generation, f"{generation}:2x2")
    code = (
        "from big_ssl.parallel import hardware; from big_ssl.planning import topology\n"
        f"devices = topology.devices(topology.parse({smallest!r}))\n"
        "assert hardware.chip(devices[0].device_kind), devices[0].device_kind"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
