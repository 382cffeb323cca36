"""A run in a failing bucket ends, through restarts, like a run in a reliable one."""

import io as stdlib_io
import pathlib
import signal
import socket
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from big_ssl import io
from big_ssl.training import loop
from big_ssl.training.metrics import read_lines
from tests import commands, emulators, faulty_proxy
from tests.training import micro_in_bucket

SAMPLE = pathlib.Path(__file__).parents[1] / "data" / "openclipart_sample.parquet"
# What requests are for, and of how many one fails: in a short run, and in a long one.
TRAINING, JUDGING, SAVING, READING, REST = (
    "GET .*/pairs", "GET .*/pictures", "(POST|PUT|DELETE) .*/checkpoints", "GET .*/checkpoints", ""
)  # fmt: skip
FEW = {TRAINING: 18, JUDGING: 50, SAVING: 25, READING: 150, REST: 120}
MANY = {TRAINING: 6, JUDGING: 8, SAVING: 6, READING: 12, REST: 6}


class Storage:
    """An emulated bucket with data in it, and runs there."""

    def __init__(self, emulator, folder, tmp_path, cache):
        self._emulator, self._cache = emulator, cache
        self._data, self._folder, self._tmp_path = f"{folder}/data", io.as_path(folder), tmp_path
        self._started = []
        io.write_atomically(io.as_path(self._data) / "pairs.parquet", SAMPLE.read_bytes())
        for i in range(12):
            picture = stdlib_io.BytesIO()
            Image.new("RGB", (32, 32), (20 * i, 250 - 20 * i, 90)).save(picture, "png")
            io.write_atomically(f"{self._data}/pictures/{'abc'[i % 3]}/{i}.png", picture.getvalue())

    def workdir(self, name):
        """The path of a run."""
        return self._folder / name

    def start(self, name, steps, address="", processes=1):
        """The processes of a run, and the file of their output. Without an address it reads and writes the
        emulator, and keeps what it compiles on this machine; else the proxy there, all in the bucket."""
        environment = dict(
            emulators.environment("gcs", address or self._emulator.address),
            JAX_PLATFORMS="cpu",
            JAX_NUM_CPU_DEVICES=str(2 // processes),
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            JAX_COMPILATION_CACHE_DIR=f"{self._folder}/compiled" if address else str(self._cache),
        )
        log = self._tmp_path / f"{name}{len(self._started)}.log"
        log.touch()
        port = _free_port()
        arguments = dict(total_steps=steps, log_every=1, eval_every=steps // 2) | {"checkpoint.every": 2}
        command = [
            "-m",
            "big_ssl.main",
            f"--config=tests/training/micro_in_bucket.py:{self._data}",
            f"--workdir={self.workdir(name)}",
            *(f"--config.{key}={value}" for key, value in arguments.items()),
        ]
        jobs = [f"localhost:{port},{processes},{i}" for i in range(processes)] if processes > 1 else [""]
        actual = [commands.start([*command, f"--distributed={job}"], log, log, environment) for job in jobs]
        self._started += actual
        return actual, log

    def finish(self, *arguments, **options):
        """Runs to the end; returns what was printed."""
        processes, log = self.start(*arguments, **options)
        codes = [process.wait(400) for process in processes]
        assert codes == [0] * len(codes), log.read_text()
        return log.read_text()

    def interrupt(self, step, number, *arguments, **options):
        """Sends a signal to a run's first process after a step; returns when all have ended."""
        processes, log = self.start(*arguments, **options)
        deadline = time.monotonic() + 300
        while f"step {step:>6}/" not in log.read_text():
            assert all(process.poll() is None for process in processes), log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        processes[0].send_signal(number)
        codes = [process.wait(300) for process in processes]
        assert None not in codes, log.read_text()
        assert number == signal.SIGKILL or codes == [0] * len(codes), log.read_text()

    def end(self):
        """Kills what a failed test left."""
        for process in self._started:
            process.kill()

    def numbers(self, name):
        """What the run has logged, without times: [(step, {name: value})]."""
        lines = read_lines(self.workdir(name) / "metrics.jsonl")
        kept = ("train/", "eval/knn")
        actual = [(line["step"], {k: v for k, v in line.items() if k.startswith(kept)}) for line in lines]
        return [each for each in actual if each[1]]

    def states(self, name, steps):
        """{step: leaves} of all checkpoints."""
        config = micro_in_bucket.get_config(self._data).to_dict() | dict(total_steps=steps)
        abstract = loop.set_up(config, jax.devices()[:2]).abstract_state
        folder = self.workdir(name) / "checkpoints"
        saved = [path for path in folder.iterdir() if path.name.isdigit()]
        return {int(p.name): jax.device_get(jax.tree.leaves(ocp.load(p, abstract))) for p in saved}


@pytest.fixture
def storage(gcs, gcs_folder, cluster, tmp_path):
    storage = Storage(gcs, gcs_folder, tmp_path, cluster.cache)
    yield storage
    storage.end()


def _check_same(storage, name, steps):
    """The run has logged and kept what the undisturbed one has, and lost nothing."""
    assert storage.numbers(name) == storage.numbers("whole")
    assert sum("eval/knn/pictures/k1_top1" in line for _, line in storage.numbers(name)) == 2
    assert not (storage.workdir(name) / "damaged_checkpoints").exists()
    assert not (storage.workdir(name) / "owner.json").exists()
    whole, other = storage.states("whole", steps), storage.states(name, steps)
    assert sorted(other) == sorted(whole) == [steps - 2, steps]
    for step, leaves in whole.items():
        for expected, leaf in zip(leaves, other[step], strict=True):
            np.testing.assert_array_equal(leaf, expected)


@pytest.mark.slow
def test_a_run_survives_occasional_storage_failures(storage, gcs):
    steps = 8
    storage.finish("whole", steps)
    schedule = faulty_proxy.Schedule(0, FEW)
    with faulty_proxy.start(gcs.address, schedule) as address:
        # The save of step 6 has waited for that of step 4.
        storage.interrupt(7, signal.SIGKILL, "run", steps, address)
        output = storage.finish("run", steps, address)
    assert "Report: " in output, output
    assert "no checkpoint" not in output, output
    _check_same(storage, "run", steps)
    for pattern in FEW:
        assert sum(schedule.applied[pattern, kind] for kind in faulty_proxy.KINDS) > 1, schedule.applied
    for kind in faulty_proxy.KINDS:
        assert sum(schedule.applied[pattern, kind] for pattern in FEW) > 1, schedule.applied


@pytest.mark.slow
def test_a_run_survives_a_failing_compilation_cache(storage, gcs):
    schedule = faulty_proxy.Schedule(0, {"/compiled/": 1}, [faulty_proxy.REFUSED])
    with faulty_proxy.start(gcs.address, schedule) as address:
        storage.finish("run", 4, address)
    assert schedule.applied["/compiled/", faulty_proxy.REFUSED] > 5
    assert not (storage.workdir("run").parent / "compiled").exists()


@pytest.mark.soak
@pytest.mark.parametrize(("seed", "processes"), [(1, 1), (2, 2)])
def test_a_run_survives_frequent_storage_failures(storage, gcs, seed, processes):
    steps = 20
    storage.finish("whole", steps, processes=processes)
    schedule = faulty_proxy.Schedule(seed, MANY)
    with faulty_proxy.start(gcs.address, schedule) as address:
        for step, name in ((3, "SIGKILL"), (7, "SIGTERM"), (10, "SIGKILL"), (15, "SIGTERM")):
            storage.interrupt(step, signal.Signals[name], "run", steps, address, processes)
        storage.finish("run", steps, address, processes)
    _check_same(storage, "run", steps)
    for pattern in MANY:
        for kind in faulty_proxy.KINDS:
            assert schedule.applied[pattern, kind] > 0, schedule.applied


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
