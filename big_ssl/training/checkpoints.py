"""Checkpoints by orbax: saved asynchronously; keeps the latest N and the best; skips damaged ones."""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from big_ssl import io, retry
from big_ssl.parallel import distributed
from big_ssl.training.requirements import RequirementsError, free_space
from big_ssl.training.stopping import TrainingFailed

# orbax's errors for a checkpoint with truncated, empty or missing files, or of another model.
_DAMAGE = (ValueError, KeyError, FileNotFoundError, EOFError)
# tensorstore's status codes of refused access, which it also raises as ValueError.
_REFUSED = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b")

# Keeps the checkpoint folder in a bucket from disappearing; orbax ignores it.
_KEPT_FILE = ".folder"


class Best(NamedTuple):
    """metric: an evaluator metric's name; sign: 1 if its largest value is best, -1 if its smallest is."""

    metric: str
    sign: int


def parse_best(text: str) -> Best | None:
    """Parses checkpoint.best, "METRIC" or "min:METRIC"; None for ""."""
    return Best(text.removeprefix("min:"), -1 if text.startswith("min:") else 1) if text else None


class Checkpoints:
    """One run's checkpoints, in workdir/checkpoints/<step>.

    keep: the number of latest checkpoints to keep; best: the metric, see `parse_best`, whose best checkpoint
    is kept too. If the process dies during a save, it leaves no checkpoint, since orbax renames the folder
    when it is complete.
    """

    def __init__(self, workdir, keep: int, best: str = ""):
        # orbax requires an absolute path, but would refuse a relative one only at the first save.
        self._workdir = io.absolute(workdir)
        self._best, self._keep = parse_best(best), keep
        with distributed.raise_on_all_hosts(TrainingFailed):
            self._recorded = self._read_recorded()
        self._checkpointer = self._open()
        # The save in progress, and its step.
        self._pending, self._pending_step = None, 0

    def save(self, state) -> None:
        """Starts saving in the background, after waiting for the previous save.

        Raises TrainingFailed, on all hosts, if either can't be written.
        """
        step = int(state.step)
        if step in self.steps():
            return
        self.wait()
        with self._saving(step):
            self._pending, self._pending_step = self._checkpointer.save_async(step, state), step

    def wait(self) -> None:
        """Waits until the last save is written. Raises TrainingFailed, on all hosts, if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._saving(self._pending_step):
                # result() also ends the thread that orbax started for it.
                pending.result()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records a step's evaluation metrics, before or after its save and before the next one.

        Only the metric of `best` is used; a step without a finite value has none. Raises RequirementsError if
        the metric's evaluator returned other metrics but not this one.
        """
        if self._best is None:
            return
        name = self._best.metric
        folder = name.rpartition("/")[0]
        siblings = sorted(key for key in metrics if key.rpartition("/")[0] == folder)
        if siblings and name not in siblings:
            raise RequirementsError(f"checkpoint.best is {name!r}; there are {', '.join(siblings)}")
        value = metrics.get(name, math.nan)
        if not math.isfinite(value):
            return
        self._recorded = {s: v for s, v in self._recorded.items() if s in self.steps()} | {step: float(value)}
        if jax.process_index() == 0:
            content = dict(metric=self._best.metric, values=self._recorded)
            io.write_atomically(self._recorded_path, json.dumps(content).encode())

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def restore_latest(self, abstract_state_at: Callable):
        """Restores the newest intact state; None without checkpoints.

        Newer, damaged checkpoints are moved to workdir/damaged_checkpoints, with a warning. A storage that
        does not answer is retried, and is no evidence of damage.

        Args:
          abstract_state_at: a checkpoint's step -> the shapes, dtypes and shardings of its state.

        Raises, on all hosts:
          RequirementsError: if no checkpoint can be read; nothing is moved then, since the config may be the
            wrong one.
          TrainingFailed: if the storage does not answer after retries.
        """
        steps, damaged = self._steps_of_all_hosts(), {}
        for step in reversed(steps):
            state, reason = self._restore(step, abstract_state_at(step))
            if not distributed.all_hosts_agree(state is not None):
                damaged[step] = reason
                continue
            if damaged:
                self._set_aside(damaged)
            return state
        if steps:
            raise RequirementsError(
                f"checkpoints: none of {steps} in {self._workdir} can be read by this config; "
                f"the newest: {damaged[steps[-1]]}"
            )
        return None

    def close(self) -> None:
        """Waits for orbax's threads and ends them.

        Raises nothing and does not communicate, since it may be called because of an error; `wait` raises
        the error of a failed save.
        """
        try:
            if self._pending is not None:
                self._pending.result()
            self._checkpointer.close()
        except Exception as error:
            logging.warning("checkpoint %d can't be saved: %s", self._pending_step, self._problem(error))

    @property
    def _recorded_path(self):
        return self._workdir / "checkpoint_metrics.json"

    def _read_recorded(self):
        """{step: value} of checkpoints that an earlier segment of the run saved."""
        if not self._best:
            return {}
        try:
            content = json.loads(retry.call(self._recorded_path.read_text))
        except FileNotFoundError:
            return {}
        if content["metric"] != self._best.metric:  # the config changed
            return {}
        return {int(step): value for step, value in content["values"].items()}

    def _open(self):
        folder = self._workdir / "checkpoints"
        if io.is_remote(folder) and jax.process_index() == 0:
            # In a bucket a folder disappears with its last file. orbax deletes a killed save's remains in the
            # background, while all processes list the folder.
            io.write_atomically(folder / _KEPT_FILE, b"")
        policies = ocp.training.preservation_policies
        return ocp.training.Checkpointer(
            folder,
            # The loop decides when to save: every call saves.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), _KeepBest(self)]
            ),
            cleanup_tmp_directories=True,
        )

    def best_step(self, steps) -> int | None:
        """The step with the best recorded metric, the latest if several tie; None without any."""
        if self._best is None:
            return None
        sign, recorded = self._best.sign, [step for step in steps if step in self._recorded]
        return max(recorded, key=lambda step: (sign * self._recorded[step], step), default=None)

    def _steps_of_all_hosts(self):
        """`steps`. Raises TrainingFailed unless all hosts see the same, since each would resume elsewhere."""
        first, *others = distributed.gather(json.dumps(self.steps()))
        for process, other in enumerate(others, 1):
            if other != first:
                raise TrainingFailed(
                    f"{self._workdir} has the checkpoints {first} for process 0 and {other} for process "
                    f"{process}; the same command tries again"
                )
        return json.loads(first)

    def _restore(self, step, abstract_state):
        """(state, "") or (None, the damage); raises TrainingFailed for errors that prove no damage."""
        with distributed.raise_on_all_hosts(TrainingFailed):
            try:
                return retry.call(self._load, step, abstract_state), "another process could not read it"
            except Exception as error:  # orbax and tensorstore raise many types
                if _proves_damage(error):
                    return None, retry.one_line(error)
                raise TrainingFailed(
                    f"checkpoint {step} in {self._workdir} can't be read now, and may be whole: "
                    f"{retry.one_line(error)}; nothing was moved, the same command tries again"
                ) from error

    def _load(self, step, abstract_state):
        # Each process loads alone: in orbax's barrier the others would wait for a process that failed.
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
        )
        with ocp.Context(multiprocessing_options=alone):
            return ocp.load(self._workdir / "checkpoints" / str(step), abstract_state)

    @contextlib.contextmanager
    def _saving(self, step):
        """Raises any error inside as TrainingFailed with one line, on all hosts."""
        with distributed.raise_on_all_hosts(TrainingFailed):
            try:
                yield
            except Exception as error:
                raise TrainingFailed(f"checkpoint {step} can't be saved: {self._problem(error)}") from error

    def _problem(self, error):
        return f"{self._workdir}{free_space(self._workdir)}: {retry.one_line(error)}"

    def _set_aside(self, damaged):
        folder = self._workdir / "damaged_checkpoints"
        for step, reason in damaged.items():
            aside = folder / f"{step}_{int(time.time())}"
            logging.warning("checkpoint %d can't be read (%s); moved to %s", step, reason, aside)
            if jax.process_index() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                (self._workdir / "checkpoints" / str(step)).rename(aside)
        multihost_utils.sync_global_devices("set aside damaged checkpoints")
        self._checkpointer.close()
        self._checkpointer = self._open()


class _KeepBest:
    """orbax's preservation policy for the checkpoint with the best recorded metric."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context):
        del context
        best = self._checkpoints.best_step([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step == best for checkpoint in checkpoints]


def _proves_damage(error):
    if retry.is_transient(error):
        return False
    cause = retry.root_cause(error)
    return isinstance(cause, _DAMAGE) and not _REFUSED.search(str(cause))
