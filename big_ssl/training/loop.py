"""The one training loop."""

import contextlib
import json
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax

from big_ssl import io, stored_config, version
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.predictor import Predictor
from big_ssl.parallel import distributed, hardware
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import (
    batches,
    evaluation,
    flops,
    handover,
    initial,
    ownership,
    progress,
    requirements,
    stages,
    streams,
)
from big_ssl.training import state as state_lib
from big_ssl.training.checkpoints import Checkpoints
from big_ssl.training.metrics import MetricsWriter
from big_ssl.training.phases import announced, phase
from big_ssl.training.profiling import Profile
from big_ssl.training.setup import Setup, set_up
from big_ssl.training.stages import Stage
from big_ssl.training.stopping import StopRequest, check_health
from big_ssl.training.wall_time import WallTime


class Result(NamedTuple):
    """The result of a run, from the stage that it ended in.

    config: the stage's, with the steps of the whole run. predictor: None without evaluators. finished: False
    if the run was stopped before its end.
    """

    config: Mapping
    state: state_lib.TrainState
    setup: Setup
    evaluators: Mapping[str, Evaluator]
    predictor: Predictor | None
    finished: bool


class _Prepared(NamedTuple):
    """A stage whose requirements have been checked."""

    stage: Stage
    setup: Setup
    loaders: Mapping
    evaluators: Mapping[str, Evaluator]
    predictor: Predictor | None


def train(config: Mapping, workdir) -> Result:
    """Trains to config["total_steps"], from the newest checkpoint in workdir if there is one.

    Writes metrics.jsonl, TensorBoard events and checkpoints. SIGTERM makes it save and return
    early. Raises requirements.RequirementsError before anything slow if the workdir can't be used, and
    stopping.TrainingFailed if the run has failed.
    """
    began = time.monotonic()
    with ownership.owned(workdir):
        with phase(f"reading {workdir}/config.json"):
            if jax.process_index() == 0:
                stored_config.check_workdir(workdir)
        prepared = _prepare(config, workdir)
        options = config["checkpoint"]
        with (
            contextlib.closing(Checkpoints(workdir, options["keep"], options["best"])) as checkpoints,
            contextlib.closing(StopRequest()) as stop,
        ):
            current, state = _start(config, workdir, prepared, checkpoints)
            while True:
                step, total = int(state.step), config["total_steps"]
                run = _Run(workdir, prepared[current], checkpoints, stop, step, began, total)
                with contextlib.closing(run):
                    state, finished = run.go(state)
                if not finished or current + 1 == len(prepared):
                    break
                current, began = current + 1, time.monotonic()
                state = _next_stage(prepared[current], state)
        stage, setup, _, evaluators, predictor = prepared[current]
        whole = stage.config | dict(total_steps=config["total_steps"])
        return Result(whole, state, setup, evaluators, predictor, finished)


def _prepare(config, workdir) -> list[_Prepared]:
    """Every stage's parts. All hosts check the requirements in one phase."""
    prepared: list[_Prepared] = []
    with phase("building the model, opening the data and what it is evaluated on"):
        for stage in stages.resolve(config):
            setup = set_up(stage.config, first=stage.start)
            size = requirements.state_bytes(setup.abstract_state)
            requirements.check_workdir(workdir, size, config["checkpoint"]["keep"])
            loaders = streams.open_streams(stage.config, setup.tokenizer)
            predictor = evaluation.predictor(stage.config, setup) if stage.config["evals"] else None
            evaluators = evaluation.evaluators(stage.config, predictor)
            if prepared:
                _check_handover(stage, prepared[-1].setup, setup)
            prepared.append(_Prepared(stage, setup, loaders, evaluators, predictor))
    for stage_parts in prepared:
        mesh_lib.warm_up_collectives(stage_parts.setup.mesh)
    return prepared


def _check_handover(stage, before, after):
    try:
        handover.check(stage, before.abstract_state, after.abstract_state)
    except ValueError as error:
        raise requirements.RequirementsError(str(error)) from error


def _next_stage(prepared, state):
    """The initial state of a stage, from the final state of the previous one."""
    with announced(f"handing the state on to stage {prepared.stage.name}"):
        return handover.hand_over(prepared.stage, state, prepared.setup.init())


def _start(config, workdir, prepared, checkpoints):
    """(the number of the stage, its state): from the newest checkpoint, or a new state of the first stage,
    filled with the weights of config.init_from if it has a path."""
    all_stages = [stage_parts.stage for stage_parts in prepared]

    def abstract_state_at(step):
        return prepared[stages.at_step(all_stages, step).index].setup.abstract_state

    with announced("restoring the newest checkpoint"):
        state = checkpoints.restore_latest(abstract_state_at)
    current = 0 if state is None else stages.at_step(all_stages, int(state.step)).index
    setup, start_from, weights = prepared[current].setup, None, config["init_from"]["path"]
    if state is None and weights:  # a resumed run does not need them, and they may be gone
        with phase(f"looking for the weights of {weights}"):
            steps = initial.newest_steps(config)
        steps = json.loads(distributed.gather(json.dumps(steps))[0])
        with phase(f"reading the weights of {weights}"):
            start_from = initial.read(config, setup.abstract_state, steps)
    # Only now: a config that can't read this run's checkpoints must not replace the run's config.
    with phase(f"writing {workdir}/config.json"):
        if jax.process_index() == 0:
            io.write_atomically(io.as_path(workdir) / "config.json", json.dumps(config, indent=2).encode())
            version.write(workdir)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state.params)
    progress.print_parameters(setup.abstract_state.params, shardings, workdir)
    if state is None:
        with announced("initialising the state"):
            state = initial.replace(setup.init(), start_from)
    return current, state


class _Run:
    """The steps of a stage that one process takes, from its first to its last."""

    def __init__(self, workdir, prepared, checkpoints, stop, start, began, run_steps):
        self.stage, self.setup, self.loaders, evaluators, self.predictor = prepared
        self.config, self.checkpoints, self.stop = self.stage.config, checkpoints, stop
        self.start, self.total, self.run_steps = start, self.stage.end, run_steps
        with phase("reading the metrics"):
            self.writer = MetricsWriter(workdir, start)
        self.time = WallTime(self.writer.seconds_before, began)
        self.profile = Profile(workdir, self.config["profile"], start, self.total)
        self.batch_sizes = {name: stream["batch_size"] for name, stream in self.config["streams"].items()}
        self.examples = sum(self.batch_sizes.values())
        limit = self.config["failure_limits"]["evaluator_failures_in_a_row"]
        self.evaluation = evaluation.Evaluation(evaluators, limit, self.writer.lines(), start)
        self.progress = progress.Progress(start, run_steps, self.examples)
        self.peak_steps = _peak_steps_per_second(self.config, self.setup)

    def go(self, state):
        """Trains until the stage's end or a request to stop.

        Returns (state, whether the run may go on): after a request it may not, unless nothing is left of it.
        """
        data = self.config | dict(seed=self.stage.data_seed)
        iterator = batches.iterate(data, self.loaders, self.start - self.stage.start, self.setup.mesh)
        with contextlib.closing(iterator):
            self._catch_up(state)
            return self._steps(state, iterator)

    def _catch_up(self, state):
        """Evaluates the restored checkpoint if the previous process died during its evaluation."""
        resumed = self.start > self.stage.start
        if resumed and self._is_evaluated(self.start) and self.evaluation.interrupted:
            self.writer.write(self.start, self.evaluation.interruption())
            if self.evaluation.may_go_on():
                self._evaluate_and_record(self.start, state)
            else:
                self.progress.report(self.start, "its evaluation ended the run too often: left out")

    def _steps(self, state, iterator):
        previous = None
        for step in range(self.start + 1, self.total + 1):
            self.profile.before(step)
            with self.time.part("data"):
                batch = mesh_lib.global_batch(self.setup.mesh, next(iterator))
            with self.time.part("compute") if previous else self._compiling():
                state, metrics = self.setup.step(state, batch)
            # Waiting for the previous step keeps one step in flight, and lets no bad step pass unseen.
            if previous is not None:
                self._check(previous, step - 1)
            previous = metrics
            self.profile.after(step, metrics)
            self.progress.step(step)
            stop = self.stop.reached(step)
            self._after(step, state, metrics, last=stop or step == self.total)
            if stop:  # at a stage's end too: with several processes no later step repeats the request
                return state, step == self.run_steps
        return state, True

    @contextlib.contextmanager
    def _compiling(self):
        with self.time.part("compile"), announced("compiling the training step"):
            yield

    def _after(self, step, state, metrics, last):
        """Logs, evaluates and saves if the config schedules it after this step."""
        if last or step % self.config["log_every"] == 0:
            self._log(step, jax.device_get(metrics))
        evaluate = self._is_evaluated(step)
        # Only an evaluated checkpoint can be the best, so every evaluated step is saved.
        may_be_best = evaluate and bool(self.config["checkpoint"]["best"])
        # Before the evaluation, which may fail, or outlast the grace period of a stopped machine.
        if last or may_be_best or step % self.config["checkpoint"]["every"] == 0:
            self._check(metrics, step)
            self.writer.flush()
            self._timed("checkpoint", self.checkpoints.save, state)
        if evaluate:
            with announced(f"evaluating step {step}"):
                self._evaluate_and_record(step, state)
        if last:  # includes the time after the last log line
            self._timed("checkpoint", self.checkpoints.wait)
            self.writer.write(step, self.time.metrics())

    def _log(self, step, metrics):
        self._check(metrics, step)
        line = {f"train/{key}": value for key, value in metrics.items()}
        self.writer.write(step, line | self.time.metrics() | self._speed(step))
        counts = (
            f"{name} {int(metrics[name])}" for name in self.setup.abstract_state.counters if metrics[name]
        )
        self.progress.report(step, "  ".join([f"loss {metrics['loss']:.4f}", *counts]))

    def _speed(self, step):
        """Metrics of the speed since this process's first step, without compilation and pauses."""
        rate = self.progress.rate(step)
        if not rate:
            return {}
        seconds = self.examples / rate
        speed = {"time/examples_per_second": rate, "time/step_seconds": seconds}
        return speed | ({"time/mfu": 1 / (seconds * self.peak_steps)} if self.peak_steps else {})

    def _is_evaluated(self, step):
        return step % self.config["eval_every"] == 0 or step == self.total

    def _evaluate_and_record(self, step, state):
        """Evaluates a state and records it for the choice of the best checkpoint."""
        metrics = self._timed("evaluate", self._evaluate, step, state)
        self.checkpoints.record(step, metrics)
        self.evaluation.check_health(step)

    def _evaluate(self, step, state):
        if not self.predictor:
            return {}
        predictor = self.predictor.for_evaluation(state_lib.evaluation_variables(state))
        metrics, problems = self.evaluation.metrics(predictor)
        self.writer.write(step, metrics)
        self.writer.flush()
        for text in (evaluation.summary(metrics), *problems):
            self.progress.report(step, text)
        return metrics

    def _check(self, metrics, step):
        with self.time.part("compute"):
            metrics = jax.device_get(metrics)
        examples = {name: step * size for name, size in self.batch_sizes.items()}
        check_health(metrics, step, examples, self.config["failure_limits"])

    def _timed(self, part, function, *arguments):
        began = time.monotonic()
        with self.time.part(part):
            result = function(*arguments)
        self.progress.pause(time.monotonic() - began)
        return result

    def close(self):
        """Closes the files."""
        self.profile.close()
        self.progress.close()
        self.writer.close()


def _peak_steps_per_second(config, setup):
    """Steps per second at the devices' peak, for MFU; None if the peak is unknown."""
    devices = setup.mesh.devices
    peak = hardware.peak_flops(devices.flat[0])
    if peak is None:
        return None
    batch = batches.abstract_global_batch(config, mesh_lib.batch_sharding(setup.mesh))
    return peak * devices.size / flops.model_flops_per_step(setup.system, setup.abstract_state, batch)
