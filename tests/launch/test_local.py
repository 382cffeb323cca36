"""launch/local.sh for real: two processes on this machine."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from big_ssl.training.metrics import read_lines

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def start(request, tmp_path):
    cache = getattr(request.config, "cache", None)
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="2",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # slower code that compiles faster
        JAX_COMPILATION_CACHE_DIR=str(cache.mkdir("jax") if cache is not None else tmp_path / "jax"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.5",
        PYTHON=sys.executable,
        PYTHONPATH=str(ROOT),
    )
    started = []

    def start(config, workdir, *arguments):
        command = [ROOT / "launch/local.sh", "2", f"--config={config}", f"--workdir={workdir}", *arguments]
        pipe = subprocess.PIPE
        script = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        started.append(script)
        return script

    yield start
    for script in started:
        script.terminate()  # which it passes on
        script.wait(60)


def test_the_tiny_preset_trains_evaluates_reports_and_resumes(start, tmp_path):
    workdir = tmp_path / "run"
    output, _ = start("configs/align_l2.py:tiny", workdir).communicate(timeout=900)
    lines = output.splitlines()
    assert sum("[0] Report: " in line for line in lines) == 1, output
    assert sum(bool(re.match(r"\[0\] step +20/20 ", line)) for line in lines) == 2  # loss, evaluation
    assert all(line.startswith(("[0] ", "[1] ")) for line in lines)
    assert not any("loss" in line for line in lines if line.startswith("[1] "))
    assert (workdir / "report/index.html").stat().st_size > 10_000
    evaluated = [
        line for line in read_lines(workdir / "metrics.jsonl") if "eval/zero_shot/twemoji/top1" in line
    ]
    assert evaluated[-1]["step"] == 20
    # Finished already: it restores, trains no further, and writes the report again.
    script = start("configs/align_l2.py:tiny", workdir)
    output, _ = script.communicate(timeout=900)
    assert script.returncode == 0, output
    assert "[0] Report: " in output
    assert "step" not in output


def test_sigterm_to_the_script_stops_the_job(start, tmp_path):
    workdir = tmp_path / "run"
    arguments = ("--config.total_steps=400", "--stopped_exit_code=75")
    script = start("tests/training/micro.py", workdir, *arguments)
    deadline = time.monotonic() + 300
    while len(read_lines(workdir / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=120)
    assert script.returncode == 75, output
    last = read_lines(workdir / "metrics.jsonl")[-1]["step"]
    assert (workdir / "checkpoints" / str(last)).is_dir()


def test_the_script_fails_if_one_process_fails(start, tmp_path):
    script = start("configs/align_l2.py:tiny", tmp_path / "run", "--config.total_steps=-1")
    output, _ = script.communicate(timeout=120)
    assert script.returncode == 2, output
    assert "a process ended with exit code 2; ending the others" in output
