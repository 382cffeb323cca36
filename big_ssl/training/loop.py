"""The one training loop."""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
from etils import epath

from big_ssl.evals import suite
from big_ssl.evals.embedder import Towers
from big_ssl.parallel import hardware
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import build, evaluation, flops, initial, progress, requirements
from big_ssl.training import state as state_lib
from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.metrics import MetricsWriter
from big_ssl.training.profiling import Profile
from big_ssl.training.setup import Setup, set_up
from big_ssl.training.stopping import StopRequest, check_health
from big_ssl.training.wall_time import WallTime, earlier_seconds


class Result(NamedTuple):
    """What a run leaves in memory. towers: None without evaluators; finished: False where it was asked
    to stop before its end."""

    state: state_lib.TrainState
    setup: Setup
    evaluators: Mapping[str, suite.Evaluator]
    towers: Towers | None
    finished: bool


def train(config: Mapping, workdir) -> Result:
    """Trains to config["total_steps"], from the newest checkpoint in workdir if there is one.

    Writes metrics.jsonl, TensorBoard events and checkpoints. SIGTERM makes it save and return
    early. Raises requirements.RequirementsError before anything slow where the workdir won't do, and
    stopping.TrainingFailed where the run has gone wrong.
    """
    began = time.monotonic()
    setup = set_up(config)
    size = requirements.state_bytes(setup.abstract_state)
    requirements.check_workdir(workdir, size, config["checkpoint"]["keep"])
    requirements.check_shared(workdir)
    evaluators = evaluation.evaluators(config, setup.system.encoders)
    mesh_lib.warm_up_collectives(setup.mesh)
    progress.print_parameters(
        setup.abstract_state.params,
        jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state.params),
        workdir,
    )
    checkpoints = Checkpoints(workdir, config["checkpoint"]["keep"], config["checkpoint"]["best"])
    state = checkpoints.restore_latest(setup.abstract_state)
    # A run that goes on needs the weights no more that it began with, and they may be gone.
    start_from = initial.read(config, setup.abstract_state) if state is None else None
    # Only now: a config that can't read this run's checkpoints is not the config of this run.
    if jax.process_index() == 0:
        (epath.Path(workdir) / "config.json").write_text(json.dumps(config, indent=2))
    if state is None:
        state = initial.replace(setup.init(), start_from)
    run = _Run(config, workdir, setup, checkpoints, evaluators, int(state.step), began)
    try:
        state, finished = run.go(state)
        return Result(state, setup, evaluators, run.towers, finished)
    finally:
        run.close()


class _Run:
    """One process's stretch of a run, from its first step to its last."""

    def __init__(self, config, workdir, setup, checkpoints, evaluators, start, began):
        self.config, self.setup, self.checkpoints = config, setup, checkpoints
        self.start, self.total = start, config["total_steps"]
        self.writer = MetricsWriter(workdir, start)
        self.time = WallTime(earlier_seconds(self.writer.found, start), began)
        self.profile = Profile(workdir, config["profile"], start, self.total)
        self.stop = StopRequest()
        self.examples = sum(stream["batch_size"] for stream in config["streams"].values())
        self.evaluators = evaluators
        self.towers = evaluation.towers(config, setup) if evaluators else None
        self.progress = progress.Progress(start, self.total, self.examples)
        self.peak_steps = _peak_steps_per_second(config, setup)

    def go(self, state):
        """Steps until the end or a request to stop. Returns (state, whether it is the end)."""
        with contextlib.closing(
            build.batches(self.config, self.setup.tokenizer, self.start, self.setup.mesh)
        ) as batches:
            return self._steps(state, batches)

    def _steps(self, state, batches):
        previous = None
        for step in range(self.start + 1, self.total + 1):
            self.profile.before(step)
            with self.time.part("data"):
                batch = mesh_lib.global_batch(self.setup.mesh, next(batches))
            with self.time.part("compute" if previous else "compile"):
                state, metrics = self.setup.step(state, batch)
            # Waiting for the step before keeps one step in flight, and bad ones from passing by.
            if previous is not None:
                self._check(previous, step - 1)
            previous = metrics
            self.profile.after(step, metrics)
            self.progress.step(step)
            stop = self.stop.reached(step)
            self._after(step, state, metrics, last=stop or step == self.total)
            if stop:
                return state, step == self.total
        return state, True

    def _after(self, step, state, metrics, last):
        """Logs, evaluates and saves where the config wants it after this step."""
        if last or step % self.config["log_every"] == 0:
            self._log(step, jax.device_get(metrics))
        found: dict[str, float] = {}
        if step % self.config["eval_every"] == 0 or step == self.total:
            found = self._timed("evaluate", self._evaluate, step, state)
        if last or step % self.config["checkpoint"]["every"] == 0:
            self._timed("checkpoint", self.checkpoints.save, state, found)
        if last:  # what came after the last log counts as well
            self.writer.write(step, self.time.metrics())

    def _log(self, step, metrics):
        self._check(metrics, step)
        line = {f"train/{key}": value for key, value in metrics.items()}
        self.writer.write(step, line | self.time.metrics() | self._speed(step))
        faults = (f"{name} {int(metrics[name])}" for name in state_lib.COUNTERS if metrics[name])
        self.progress.report(step, "  ".join([f"loss {metrics['loss']:.4f}", *faults]))

    def _speed(self, step):
        """Since this stretch began, compilation and pauses left out."""
        rate = self.progress.rate(step)
        if not rate:
            return {}
        seconds = self.examples / rate
        speed = {"time/examples_per_second": rate, "time/step_seconds": seconds}
        return speed | ({"time/mfu": 1 / (seconds * self.peak_steps)} if self.peak_steps else {})

    def _evaluate(self, step, state):
        if not self.evaluators:
            return {}
        embedder = self.towers.at(state_lib.evaluation_variables(state))
        found = {}
        for evaluator in self.evaluators.values():
            found |= {f"eval/{key}": value for key, value in evaluator.metrics(embedder).items()}
        self.writer.write(step, found)
        self.progress.report(step, evaluation.summary(found))
        return found

    def _check(self, metrics, step):
        with self.time.part("compute"):
            counters = jax.device_get({name: metrics[name] for name in state_lib.COUNTERS})
        check_health(counters, step, step * self.examples, self.config["faults"])

    def _timed(self, part, function, *arguments):
        began = time.monotonic()
        with self.time.part(part):
            result = function(*arguments)
        self.progress.pause(time.monotonic() - began)
        return result

    def close(self):
        """Waits for the last checkpoint and closes the files."""
        self.profile.close()
        self.progress.close()
        self.checkpoints.close()
        self.writer.close()
        self.stop.restore()


def _peak_steps_per_second(config, setup):
    """Steps a second at the devices' peak, to count MFU with; None where the peak isn't known."""
    devices = setup.mesh.devices
    peak = hardware.peak_flops(devices.flat[0])
    if peak is None:
        return None
    batch = build.abstract_global_batch(config, mesh_lib.batch_sharding(setup.mesh))
    return peak * devices.size / flops.model_flops_per_step(setup.system, setup.abstract_state, batch)
