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

from big_ssl.training.metrics import read_lines

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 60
ARGUMENTS = {"total_steps": STEPS, "log_every": 1, "checkpoint.every": 1000}

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
    """A cluster of one node, "localhost", that starts one job again and again."""

    def __init__(self, folder, cache, config, workdir, flags):
        self.workdir, self._folder = workdir, folder
        values = [f"--config.{key}={value}" for key, value in (ARGUMENTS | flags).items()]
        self._command = ["bash", "launch/slurm.sbatch", f"--config={config}", f"--workdir={workdir}", *values]
        self._job = str(_free_job())
        self._environment = os.environ | dict(
            PATH=f"{ROOT / 'tests/launch/slurm'}{os.pathsep}{os.environ['PATH']}",
            STAND_IN=str(folder),
            SLURM_JOB_ID=self._job,
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

    def start(self, *flags):
        """Starts the script as Slurm does, at first or after a requeue; flags: more of the command."""
        self.restarts += 1
        self.log = self._folder / f"slurm-{self._job}.{self.restarts}.out"
        with self.log.open("w") as log:
            self.script = subprocess.Popen(
                [*self._command, *flags],
                cwd=ROOT,
                env=self._environment | dict(SLURM_RESTART_COUNT=str(self.restarts)),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for_step(self, step):
        """Returns once the metrics have it."""
        deadline = time.monotonic() + 300
        while not any(line["step"] >= step for line in read_lines(self.workdir / "metrics.jsonl")):
            assert self.script.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def send_task(self, task, number):
        """Sends a signal to a task."""
        os.kill(int((self._folder / f"task{task}").read_text()), number)

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
def slurm(request, cluster, micro, tmp_path):
    """slurm(**config changes) -> a Slurm whose job trains the micro recipe."""
    started = []

    def make(flags=None):
        started.append(Slurm(tmp_path, cluster.cache, micro, tmp_path / "run", flags or {}))
        return started[-1]

    yield make
    for each in started:
        each.end()


@pytest.fixture(scope="module")
def whole(cluster, micro, losses, tmp_path_factory):
    """The losses of the job that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    cluster.finish(micro, workdir, ARGUMENTS)
    return losses(workdir)


def test_a_job_whose_time_is_up_is_requeued_and_goes_on(slurm, whole, losses):
    job = slurm()
    job.start()
    job.wait_for_step(2)
    # As slurmd does before a preemption: to all tasks, and to the script.
    job.script.send_signal(signal.SIGTERM)
    for task in range(2):
        job.send_task(task, signal.SIGTERM)
    assert job.script.wait(120) == 75, job.log.read_text()
    assert job.asked() == [f"requeue {job._job}"]
    (stopped,) = (int(path.name) for path in (job.workdir / "checkpoints").iterdir())
    assert losses(job.workdir) == whole[:stopped]
    assert 2 <= stopped < STEPS
    job.start()
    assert job.script.wait(300) == 0, job.log.read_text()
    assert len(job.asked()) == 1
    assert losses(job.workdir) == whole
    lines = job.log.read_text().splitlines()
    assert sum(line.startswith("0: Report: ") for line in lines) == 1
    assert all(re.match("[01]: ", line) for line in lines)


def test_a_job_that_loses_a_task_fails_and_goes_on_from_its_newest_checkpoint(slurm, whole, losses):
    job = slurm({"checkpoint.every": 2})
    job.start()
    job.wait_for_step(5)
    job.send_task(0, signal.SIGKILL)
    assert job.script.wait(120) == 128 + signal.SIGKILL, job.log.read_text()
    assert job.asked() == []
    saved = [int(path.name) for path in (job.workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) >= 2
    job.start()
    assert job.script.wait(300) == 0, job.log.read_text()
    assert f"step {max(saved) + 1:>6}/{STEPS}" in job.log.read_text()
    assert f"step {max(saved):>6}/{STEPS}" not in job.log.read_text()
    assert losses(job.workdir) == whole
