"""Runs of `python -m big_ssl.main`, killed and stopped by signals."""

import fcntl
import os
import pty
import random
import select
import signal
import subprocess
import sys
import termios
import threading
import time

import jax
import numpy as np
import pytest

from big_ssl.training import loop
from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.metrics import read_lines
from configs.align_l2 import get_config
from tests import commands

DEVICES, STEPS = 2, 30


RECIPES = dict(micro="tests/training/micro.py", tiny="configs/align_l2.py:tiny")


class Command:
    """A recipe that logs every step and saves every third, on two devices."""

    def __init__(self, recipe, cache):
        self._config = RECIPES[recipe]
        self.environment = dict(
            JAX_PLATFORMS="cpu",
            JAX_NUM_CPU_DEVICES=str(DEVICES),
            # `micro` runs slower code that compiles faster.
            JAX_DISABLE_MOST_OPTIMIZATIONS=str(int(recipe == "micro")),
            JAX_COMPILATION_CACHE_DIR=str(cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )

    def line(self, workdir, steps=STEPS):
        """The command's arguments after the interpreter."""
        arguments = dict(total_steps=steps, log_every=1, eval_every=steps, evals="{}")
        arguments |= {"checkpoint.every": 3, "checkpoint.keep": 3}
        values = [f"--config.{key}={value}" for key, value in arguments.items()]
        return ["-m", "big_ssl.main", f"--config={self._config}", f"--workdir={workdir}", *values]

    def start(self, workdir):
        """Starts a run: (the process, its output file)."""
        output = workdir.with_suffix(".log")
        output.parent.mkdir(exist_ok=True)
        output.write_text("")
        return commands.start(self.line(workdir), output, output, self.environment), output

    def finish(self, workdir):
        """Runs to the end. Returns the output."""
        process, output = self.start(workdir)
        assert process.wait(300) == 0, output.read_text()
        return output.read_text()

    def interrupt(self, workdir, number, when):
        """Sends signal `number` once when(workdir); returns (exit code, output)."""
        process, output = self.start(workdir)
        deadline = time.monotonic() + 240
        while not when(workdir) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        return process.wait(240), output.read_text()


def _lines(workdir):
    return [line for line in read_lines(workdir / "metrics.jsonl") if "train/loss" in line]


def _at_step(step):
    return lambda workdir: any(line["step"] >= step for line in _lines(workdir))


def _while_saving(step):
    """orbax writes into a temporary folder, renamed to the step's number at the end."""
    return lambda workdir: any(
        path.name != str(step) and path.name.startswith(f"{step}.") for path in workdir.glob("checkpoints/*")
    )


@pytest.fixture(scope="module")
def recipe(request):
    return getattr(request, "param", "micro")


@pytest.fixture(scope="module")
def command(recipe, request, tmp_path_factory):
    cache = getattr(request.config, "cache", None)
    return Command(recipe, cache.mkdir("jax") if cache is not None else tmp_path_factory.mktemp("jax"))


@pytest.fixture(scope="module")
def read(recipe, micro_config):
    """read(workdir) -> the newest checkpoint's state on the host."""
    config = micro_config() if recipe == "micro" else get_config("tiny").to_dict()
    config |= dict(total_steps=STEPS, evals={})
    abstract = loop.set_up(config, jax.devices()[:DEVICES]).abstract_state

    def newest(workdir):
        checkpoints = Checkpoints(workdir, 3)
        state = jax.device_get(checkpoints.restore_latest(lambda step: abstract))
        checkpoints.close()
        return state

    return newest


@pytest.fixture(scope="module")
def whole(command, read, tmp_path_factory):
    """The uninterrupted run: (its last state, its metrics)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    command.finish(workdir)
    return read(workdir), _lines(workdir)


def _assert_ended_the_same(workdir, read, whole):
    state, lines = whole
    ended = read(workdir)
    assert int(ended.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, ended, state)
    losses = [[(line["step"], line["train/loss"]) for line in each] for each in (_lines(workdir), lines)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["micro", "tiny"], indirect=True, scope="module")
def test_a_run_killed_while_saving_and_stopped_resumes_identically(command, read, whole, tmp_path):
    workdir = tmp_path / "run"
    code, output = command.interrupt(workdir, signal.SIGKILL, _while_saving(6))
    assert code == -signal.SIGKILL, output
    assert 6 <= _lines(workdir)[-1]["step"] < STEPS

    resumed_after = _lines(workdir)[-1]["step"]
    code, output = command.interrupt(workdir, signal.SIGTERM, _at_step(resumed_after + 4))
    assert code == 0, output
    assert "SIGTERM: saving, then stopping" in output
    assert "Report:" not in output
    last = _lines(workdir)[-1]["step"]
    assert resumed_after + 4 <= last < STEPS
    assert int(read(workdir).step) == last

    assert "Report:" in command.finish(workdir)
    _assert_ended_the_same(workdir, read, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "when",
    [_while_saving(3), _while_saving(30)],
    ids=["first save", "last save"],
)
def test_a_run_killed_at_a_chosen_moment_resumes_identically(when, command, read, whole, tmp_path):
    workdir = tmp_path / "run"
    command.interrupt(workdir, signal.SIGKILL, when)
    command.finish(workdir)
    _assert_ended_the_same(workdir, read, whole)


@pytest.mark.slow
def test_a_run_killed_repeatedly_resumes_identically(command, read, whole, tmp_path):
    workdir, rng = tmp_path / "run", random.Random(0)
    for _ in range(5):
        seen = len(_lines(workdir))
        pause = rng.uniform(0, 0.5)

        def later(workdir, seen=seen, pause=pause):
            lines = _lines(workdir)
            if len(lines) in (0, seen):
                return False
            time.sleep(pause)
            return True

        command.interrupt(workdir, signal.SIGKILL, later)
    command.finish(workdir)
    _assert_ended_the_same(workdir, read, whole)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(command, read, whole, tmp_path):
    workdir = tmp_path / "run"
    command.interrupt(workdir, signal.SIGKILL, lambda workdir: (workdir / "config.json").exists())
    command.finish(workdir)
    _assert_ended_the_same(workdir, read, whole)


@pytest.mark.slow
def test_a_closed_terminal_makes_a_run_save_and_stop(command, read, tmp_path):
    """Every write to it fails from then on. So many steps outlast a slow reader of this test."""
    steps = 100 * STEPS
    workdir, (ours, theirs) = tmp_path / "run", pty.openpty()

    def take_terminal():
        """As the controlling one of the new session. Tests may run under nohup, which the run would obey."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    streams = dict(
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=take_terminal
    )
    process = subprocess.Popen(
        [sys.executable, *command.line(workdir, steps)],
        cwd=commands.ROOT,
        env=os.environ | command.environment,
        **streams,
    )
    os.close(theirs)
    closing = threading.Event()
    reader = threading.Thread(target=_read_until, args=[closing, ours], daemon=True)
    reader.start()
    deadline = time.monotonic() + 240
    while not _at_step(2)(workdir) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    closing.set()
    reader.join()
    os.close(ours)
    assert process.wait(120) == 0
    last = _lines(workdir)[-1]["step"]
    assert 2 <= last < steps
    assert int(read(workdir).step) == last


def _read_until(closing, descriptor):
    """A terminal that nobody reads blocks its writers."""
    while not closing.is_set():
        if select.select([descriptor], [], [], 0.05)[0]:
            os.read(descriptor, 4096)
