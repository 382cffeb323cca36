"""Jobs of several processes on this machine, each with its own CPU devices."""

import signal
import socket
import time

import pytest

from big_ssl.training.metrics import read_lines
from tests import commands

MICRO = "tests/training/micro.py"


class Job:
    """`processes` runs of one command, started together; outputs go to files in `folder`."""

    def __init__(self, command, processes, folder, environment):
        port = _free_port()
        self._files = [folder / f"process{i}.log" for i in range(processes)]
        self.processes = []
        for i, path in enumerate(self._files):
            address = f"localhost:{port},{processes},{i}" if processes > 1 else ""
            path.touch()
            self.processes.append(
                commands.start([*command, f"--distributed={address}"], path, path, environment)
            )

    def wait(self, seconds: float) -> list[int]:
        """The exit codes; kills processes that still run after `seconds`, whose code is then -SIGKILL."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            if process.wait(max(deadline - time.monotonic(), 0)) is None:
                self.end()
        return [process.returncode for process in self.processes]

    def wait_until(self, condition, seconds: float) -> None:
        """Waits until condition() holds; fails the test if it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def end(self) -> None:
        """Kills the running processes."""
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self, index: int | None = None) -> str:
        """The output of one process, or of all."""
        files = self._files if index is None else [self._files[index]]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in files)


class Cluster:
    """Starts jobs. compiling: "quickly" for code that runs slowly, else "well"."""

    def __init__(self, cache, folder):
        self.cache, self._folder, self._jobs = cache, folder, []

    def start(self, command, processes=2, devices=2, compiling="quickly") -> Job:
        """`processes` times `command`, with `devices` CPU devices each."""
        environment = dict(
            JAX_PLATFORMS="cpu",
            JAX_NUM_CPU_DEVICES=str(devices),
            JAX_DISABLE_MOST_OPTIMIZATIONS=str(int(compiling == "quickly")),
            JAX_COMPILATION_CACHE_DIR=str(self.cache),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        )
        folder = self._folder / f"job{len(self._jobs)}"
        folder.mkdir()
        job = Job(command, processes, folder, environment)
        self._jobs.append(job)
        return job

    def train(self, config, workdir, arguments, flags=(), **layout) -> Job:
        """Starts `python -m big_ssl.main`; arguments: {config key: value}."""
        values = [f"--config.{key}={value}" for key, value in arguments.items()]
        command = ["-m", "big_ssl.main", f"--config={config}", f"--workdir={workdir}", *values, *flags]
        return self.start(command, **layout)

    def finish(self, *arguments, seconds=900, **options) -> Job:
        """Like `train`; waits until all processes have succeeded."""
        job = self.train(*arguments, **options)
        codes = job.wait(seconds)
        assert codes == [0] * len(codes), job.output()
        return job

    def end(self):
        """Kills the processes that a failed test left."""
        for job in self._jobs:
            job.end()


@pytest.fixture(scope="module")
def cluster(request, tmp_path_factory):
    cache = getattr(request.config, "cache", None)
    folder = tmp_path_factory.mktemp("jobs")
    cluster = Cluster(cache.mkdir("jax") if cache is not None else tmp_path_factory.mktemp("jax"), folder)
    yield cluster
    cluster.end()


@pytest.fixture(scope="session")
def losses():
    """losses(workdir) -> [(step, loss)] of every line of its metrics.jsonl."""
    return lambda workdir: [
        (line["step"], line["train/loss"])
        for line in read_lines(workdir / "metrics.jsonl")
        if "train/loss" in line
    ]


@pytest.fixture(scope="session")
def micro():
    """The path of a recipe that compiles in seconds."""
    return MICRO


@pytest.fixture(scope="session")
def send():
    """send(process, "SIGTERM")."""
    return lambda process, name: process.send_signal(signal.Signals[name])


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
