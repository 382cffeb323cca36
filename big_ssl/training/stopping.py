"""Stopping a run: asked to from outside, or because it has gone wrong."""

import os
import signal
import types
from collections.abc import Mapping

import jax
from absl import logging
from jax.experimental import multihost_utils


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says why and where."""


class StopRequest:
    """Remembers SIGTERM, SIGINT and SIGHUP, so that the loop can save and leave between two steps.

    SIGHUP, of a terminal that was closed, is ignored where it was before: a run under nohup goes on.
    Nothing can be printed to such a terminal any more, so that output to it is dropped. A second
    signal has its usual effect. With several processes, the signal to any of them stops all after the
    same step, a second or so later, on which JAX's preemption service agrees. Its own handler of
    SIGTERM, there from the start-up on, stays in place, and takes no notice of a second one.
    """

    def __init__(self):
        self._asked = False
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        handlers: dict = {}
        if jax.process_count() > 1:
            handlers |= dict.fromkeys((signal.SIGINT, signal.SIGHUP), self._pass_on)
        else:
            handlers |= dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._remember)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del handlers[signal.SIGHUP]
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}

    def _remember(self, number: int, frame: types.FrameType | None):
        self._drop_output()
        logging.warning("%s: saving, then stopping", signal.Signals(number).name)
        self._asked = True
        signal.signal(number, self._previous[number])

    def _pass_on(self, number: int, frame: types.FrameType | None):
        self._drop_output()
        signal.signal(number, self._previous[number])
        signal.raise_signal(signal.SIGTERM)

    def _drop_output(self):
        """Of what was a terminal and is none any more, where every write would raise."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                with open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), descriptor)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; with several processes, to be asked after each step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            logging.warning("SIGTERM to one of the processes: saving, then stopping")
            return True
        return self._asked

    def close(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def check_health(metrics: Mapping, step: int, examples: Mapping[str, int], limits: Mapping) -> None:
    """Raises TrainingFailed where too many steps in a row were skipped, examples have no record, or too large
    a part of a stream's recent examples had to be replaced.

    metrics: a step's, on the host, the same on all hosts; examples: {stream: seen so far}; limits:
    config.failure_limits.
    """
    skipped = int(metrics["skipped_in_a_row"])
    if metrics["missing_examples"]:
        raise TrainingFailed(
            f"step {step}: there is no usable record for {int(metrics['missing_examples'])} examples, nor a "
            "neighbour that could stand in; the hosts that read them say why"
        )
    if skipped >= limits["skipped_in_a_row"]:
        raise TrainingFailed(
            f"step {step}: the loss, its gradient or the update was not finite {skipped} times in a row "
            "(config.failure_limits.skipped_in_a_row)"
        )
    for stream, seen in examples.items():
        fraction = float(metrics[f"replaced_fraction/{stream}"])
        # A fraction of a few dozen examples says nothing yet.
        if seen >= 100 and fraction > limits["replaced_fraction"]:
            raise TrainingFailed(
                f"step {step}: {fraction:.1%} of the last {min(seen, limits['window_examples'])} examples of "
                f"streams.{stream} were unusable and replaced, above config.failure_limits.replaced_fraction "
                f"= {limits['replaced_fraction']}; the hosts' warnings name some"
            )
