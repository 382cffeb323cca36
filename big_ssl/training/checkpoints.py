"""Checkpoints by orbax: asynchronous, the last N and the best kept, damaged ones passed over."""

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

# What orbax raises of a checkpoint whose files are cut short, empty or gone, or are another model's.
_DAMAGE = (ValueError, KeyError, FileNotFoundError, EOFError)
# Status codes by which tensorstore refuses access, as a ValueError too.
_REFUSED = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b")

# Keeps the folder of checkpoints in being; orbax takes no notice of it.
_KEPT_FILE = ".folder"


class Best(NamedTuple):
    """metric: the name of an evaluation's metric; sign: 1 where its largest value is best, -1 where its
    smallest is."""

    metric: str
    sign: int


def parse_best(text: str) -> Best | None:
    """checkpoint.best, "METRIC" or "min:METRIC"; None where it is "", for none."""
    return Best(text.removeprefix("min:"), -1 if text.startswith("min:") else 1) if text else None


class Checkpoints:
    """The checkpoints of one run, in workdir/checkpoints/<step>.

    keep: how many of the latest stay; best: as `parse_best` takes it, the metric whose best checkpoint
    stays as well. A save that the process does not survive leaves no checkpoint behind, since
    orbax renames the folder into place when it is complete.
    """

    def __init__(self, workdir, keep: int, best: str = ""):
        # Absolute, as orbax wants it: it refuses a relative path only at the first save.
        self._workdir = io.absolute(workdir)
        self._best, self._keep = parse_best(best), keep
        with distributed.raise_on_all_hosts(TrainingFailed):
            self._recorded = self._read_recorded()
        self._checkpointer = self._open()
        # The save that is under way, and its step.
        self._pending, self._pending_step = None, 0

    def save(self, state) -> None:
        """Starts saving in the background; waits first for the save before it.

        Raises TrainingFailed, on all hosts, where either can't be written.
        """
        step = int(state.step)
        if step in self.steps():
            return
        self.wait()
        with self._saving(step):
            self._pending, self._pending_step = self._checkpointer.save_async(step, state), step

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises TrainingFailed, on all hosts, where it can't be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._saving(self._pending_step):
                # Asked for its result, orbax ends the thread that it started for the answer.
                pending.result()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes what evaluation gave for a step, before or after its save and before the next.

        Only the metric of `best` counts; not finite, or not among these, it leaves the step without a value.
        Raises RequirementsError where its evaluator gave others, and not this one.
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
        """The newest state that reads back whole; None for none.

        abstract_state_at: from a checkpoint's step to the shapes, dtypes and shardings of its state.

        Newer ones that are damaged are moved to workdir/damaged_checkpoints, with a warning; a storage that
        does not answer is asked again, and proves no damage. Raises, on all hosts, RequirementsError where
        there are checkpoints but not one can be read: nothing is moved then, since it may be the
        config that is another one; and TrainingFailed where the storage goes on not answering.
        """
        steps, damaged = self._steps_of_all_hosts(), {}
        for step in reversed(steps):
            state, reason = self._restored(step, abstract_state_at(step))
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
        """Ends orbax's threads, once what they write is on disk.

        Raises nothing and asks no other host, since it may be called because of an error: `wait` tells of a
        save that failed.
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
        """{step: value} of the checkpoints that an earlier stretch of the run has saved."""
        if not self._best:
            return {}
        try:
            content = json.loads(retry.call(self._recorded_path.read_text))
        except FileNotFoundError:
            return {}
        if content["metric"] != self._best.metric:  # another metric is best from now on
            return {}
        return {int(step): value for step, value in content["values"].items()}

    def _open(self):
        folder = self._workdir / "checkpoints"
        if io.is_remote(folder) and jax.process_index() == 0:
            # In a bucket a folder is gone with its last file. orbax clears away in the background what a
            # killed save has left, and lists the folder meanwhile, on all processes.
            io.write_atomically(folder / _KEPT_FILE, b"")
        policies = ocp.training.preservation_policies
        return ocp.training.Checkpointer(
            folder,
            # When to save is the loop's decision: every call saves.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), _KeepBest(self)]
            ),
            cleanup_tmp_directories=True,
        )

    def best_step(self, steps) -> int | None:
        """That of these steps whose recorded metric is best, the latest of equals; None for none."""
        if self._best is None:
            return None
        sign, known = self._best.sign, [step for step in steps if step in self._recorded]
        return max(known, key=lambda step: (sign * self._recorded[step], step), default=None)

    def _steps_of_all_hosts(self):
        """`steps`, once all hosts are known to see the same: each would go on from another step."""
        first, *others = distributed.gather(json.dumps(self.steps()))
        for process, other in enumerate(others, 1):
            if other != first:
                raise TrainingFailed(
                    f"{self._workdir} has the checkpoints {first} for process 0 and {other} for process "
                    f"{process}; the same command tries again"
                )
        return json.loads(first)

    def _restored(self, step, abstract_state):
        """(state, "") or (None, why it can't be read); raises TrainingFailed where that proves no damage."""
        with distributed.raise_on_all_hosts(TrainingFailed):
            try:
                return retry.call(self._load, step, abstract_state), "another process could not read it"
            except Exception as error:  # orbax and tensorstore raise many kinds
                if _proves_damage(error):
                    return None, retry.one_line(error)
                raise TrainingFailed(
                    f"checkpoint {step} in {self._workdir} can't be read now, and may be whole: "
                    f"{retry.one_line(error)}; nothing was moved, the same command tries again"
                ) from error

    def _load(self, step, abstract_state):
        # Each process for itself: in orbax's barrier those that have read would wait for one that could not.
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
        )
        with ocp.Context(multiprocessing_options=alone):
            return ocp.load(self._workdir / "checkpoints" / str(step), abstract_state)

    @contextlib.contextmanager
    def _saving(self, step):
        """Raises whatever goes wrong inside as TrainingFailed of one line, on all hosts."""
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
    """orbax's policy for the checkpoint whose recorded metric is best."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context):
        del context
        best = self._checkpoints.best_step([each.step for each in checkpoints])
        return [each.step == best for each in checkpoints]


def _proves_damage(error):
    if retry.is_transient(error):
        return False
    cause = retry.root_cause(error)
    return isinstance(cause, _DAMAGE) and not _REFUSED.search(str(cause))
