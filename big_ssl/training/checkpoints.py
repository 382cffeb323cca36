"""Checkpoints by orbax: asynchronous, the last N and the best kept, damaged ones passed over."""

import time
from collections.abc import Mapping

import jax
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from big_ssl import io
from big_ssl.parallel import distributed
from big_ssl.training.requirements import RequirementsError


class Checkpoints:
    """The checkpoints of one run, in workdir/checkpoints/<step>.

    keep: how many of the latest stay; best: the metric whose best checkpoint stays as well,
    "" for none. A save that the process does not survive leaves no checkpoint behind, since
    orbax renames the folder into place when it is complete.
    """

    def __init__(self, workdir, keep: int, best: str = ""):
        # Absolute, as orbax wants it: it refuses a relative path only at the first save.
        self._workdir, self._best = io.absolute(workdir), best
        policies = ocp.training.preservation_policies
        kept: list = [policies.LatestN(keep)]
        if best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best], n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._open = lambda: ocp.training.Checkpointer(
            self._workdir / "checkpoints",
            # When to save is the loop's decision: every call saves.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._checkpointer = self._open()

    def save(self, state, metrics: Mapping[str, float]) -> None:
        """Starts saving in the background; waits first for the save before it."""
        step, judged = int(state.step), {k: v for k, v in metrics.items() if k == self._best}
        if step not in self.steps():
            self._checkpointer.save_async(step, state, metrics=judged or None)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def restore_latest(self, abstract_state):
        """The newest state that reads back whole, on abstract_state's shardings; None for none.

        Newer ones that don't are moved to workdir/damaged_checkpoints, with a warning. Raises
        RequirementsError where there are checkpoints but not one can be read: nothing is moved then,
        since it may be the config that is another one.
        """
        steps, errors = self.steps(), {}
        for step in reversed(steps):
            state, problem = None, "another process could not read it"
            try:
                state = self._checkpointer.load(step, abstract_state)
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                problem = _reason(error)
            if not distributed.all_hosts_agree(state is not None):
                errors[step] = problem
                continue
            if errors:
                self._set_aside(errors)
            return state
        if steps:
            raise RequirementsError(
                f"checkpoints: none of {steps} in {self._workdir} can be read by this config; "
                f"the newest: {errors[steps[-1]]}"
            )
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._checkpointer.close()

    def _set_aside(self, errors):
        folder = self._workdir / "damaged_checkpoints"
        for step, reason in errors.items():
            aside = folder / f"{step}_{int(time.time())}"
            logging.warning("checkpoint %d can't be read (%s); moved to %s", step, reason, aside)
            if jax.process_index() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                (self._workdir / "checkpoints" / str(step)).rename(aside)
        multihost_utils.sync_global_devices("set aside damaged checkpoints")
        self._checkpointer.close()
        self._checkpointer = self._open()


def _reason(error):
    """What is at the bottom of an error, in a line: orbax's own message recites the whole state."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]
