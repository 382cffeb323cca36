"""The comparison of multi-crops with torchvision: what it says where it can't compare, and that it does."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def _run(*arguments, **environment):
    command = [sys.executable, "-m", "benchmarks.multicrop", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | environment
    )


def _found(*names):
    return all(importlib.util.find_spec(name) for name in names)


@pytest.mark.slow
@pytest.mark.skipif(_found("torch", "torchvision"), reason="torchvision is installed")
def test_without_torchvision_it_says_what_to_install():
    done = _run()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "multicrop compares with torchvision: pip install torch torchvision"
    )


@pytest.mark.parity
@pytest.mark.skipif(not _found("torch", "torchvision"), reason="needs torchvision")
def test_both_are_timed_on_one_thread():
    assert "set OMP_NUM_THREADS=1" in _run(OMP_NUM_THREADS="2").stderr
    done = _run("--pictures=1", "--rounds=1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "torchvision PIL / ours: " in done.stdout
    assert "torchvision uint8 / ours: " in done.stdout
