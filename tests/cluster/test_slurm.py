"""launch/slurm.sbatch for real, with a stand-in for Slurm, tests/launch/slurm/. Its tasks find one another
by JAX's own detection of Slurm."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 40
ARGUMENTS = {"total_steps": STEPS, "log_every": 1, "checkpoint.every": 5}

pytestmark = pytest.mark.slow


def _free_job():
    """The number of a job whose port is free, which JAX's detection derives from it."""
    for job in range(4096):
        with socket.socket() as listener:
            try:
                listener.bind(("localhost", 61440 + job))
                return job
            except OSError:
                continue
    raise RuntimeError("no free port")


class Slurm:
    """A cluster of one node, "localhost", that starts one job of two tasks again and again."""

    def __init__(self, folder, cache, config):
        self.workdir, self._folder = folder / "run", folder
        values = [f"--config.{key}={value}" for key, value in ARGUMENTS.items()]
        values = [f"--config={config}", f"--workdir={self.workdir}", *values]
        self._command = ["bash", "launch/slurm.sbatch", *values]
        self.job = str(_free_job())
        self._environment = os.environ | dict(
            PATH=f"{ROOT / 'tests/launch/slurm'}{os.pathsep}{os.environ['PATH']}",
            STAND_IN=str(folder),
            SLURM_JOB_ID=self.job,
            SLURM_NTASKS="2",
            SLURM_JOB_NODELIST="localhost",
            SLURM_JOB_NUM_NODES="1",
            PYTHON=sys.executable,
            PYTHONPATH=str(ROOT),
            JAX_PLATFORMS="cpu",
            JAX_NUM_CPU_DEVICES="2",
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
            JAX_COMPILATION_CACHE_DIR=str(cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        self.restarts, self.script = -1, None

    def start(self):
        """Starts the script as Slurm does, at first or after a requeue."""
        self.restarts += 1
        self.log = self._folder / f"slurm-{self.job}.{self.restarts}.out"
        with self.log.open("w") as log:
            self.script = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment | dict(SLURM_RESTART_COUNT=str(self.restarts)),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for_step(self, step):
        """Returns once process 0 has printed it."""
        deadline = time.monotonic() + 300
        while f" {step}/{STEPS} " not in self.log.read_text():
            assert self.script.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def send_task(self, task, number):
        """Sends a signal to a task."""
        os.kill(int((self._folder / f"task{task}").read_text()), number)

    def saved(self):
        """The steps that have a checkpoint."""
        return [int(path.name) for path in (self.workdir / "checkpoints").iterdir() if path.name.isdigit()]

    def asked(self):
        """What scontrol was asked for."""
        file = self._folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def end(self):
        """Kills what a failed test left."""
        if self.script and self.script.poll() is None:
            for task in range(2):
                self.send_task(task, signal.SIGKILL)
            self.script.wait(60)


@pytest.fixture
def slurm(cluster, micro, tmp_path):
    """A Slurm whose job trains the micro recipe."""
    slurm = Slurm(tmp_path, cluster.cache, micro)
    yield slurm
    slurm.end()


@pytest.fixture(scope="module")
def whole(cluster, micro, losses, tmp_path_factory):
    """The losses of the uninterrupted job."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    cluster.finish(micro, workdir, ARGUMENTS)
    return losses(workdir)


def test_a_job_resumes_after_a_lost_task_and_after_a_requeue(slurm, whole, losses):
    """With the losses of the uninterrupted job."""
    slurm.start()
    slurm.wait_for_step(11)  # the save of step 10 has waited for that of step 5
    slurm.send_task(0, signal.SIGKILL)
    assert slurm.script.wait(120) == 128 + signal.SIGKILL, slurm.log.read_text()
    assert slurm.asked() == []
    newest = max(slurm.saved())
    slurm.start()
    slurm.wait_for_step(newest + 4)
    # As slurmd does before a preemption: to all tasks, and to the script.
    slurm.script.send_signal(signal.SIGTERM)
    for task in range(2):
        slurm.send_task(task, signal.SIGTERM)
    assert slurm.script.wait(120) == 75, slurm.log.read_text()
    assert slurm.asked() == [f"requeue {slurm.job}"]
    assert f" {newest + 1}/{STEPS} " in slurm.log.read_text()
    assert f" {newest}/{STEPS} " not in slurm.log.read_text()
    stopped = max(slurm.saved())
    assert newest + 4 <= stopped < STEPS
    assert losses(slurm.workdir) == whole[:stopped]
    slurm.start()
    assert slurm.script.wait(300) == 0, slurm.log.read_text()
    assert len(slurm.asked()) == 1
    assert losses(slurm.workdir) == whole
    lines = slurm.log.read_text().splitlines()
    assert sum(line.startswith("0: Report: ") for line in lines) == 1
    assert all(re.match("[01]: ", line) for line in lines)
