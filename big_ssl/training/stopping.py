"""Stopping a run: on a signal, or because training has failed."""

import contextlib
import os
import signal
import sys
import types
from collections.abc import Callable, Mapping
from typing import TextIO

import jax
from absl import logging
from jax.experimental import multihost_utils


class TrainingFailed(RuntimeError):
    """The run cannot continue; the message contains the reason and the step or file."""


class StopRequest:
    """Records SIGTERM, SIGINT and SIGHUP, so that the loop can save and exit between two steps.

    SIGHUP, from a closed terminal, stays ignored if it was: a run under nohup continues. Output to a closed
    terminal is discarded. A second signal has its default effect. With several processes, a signal to any of
    them stops all after the same step, about a second later, which JAX's preemption service chooses. That
    service's own SIGTERM handler, installed at start-up, stays in place and ignores a second SIGTERM.
    """

    def __init__(self):
        self._asked = False
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        handlers: dict = {}
        if jax.process_count() > 1:
            handlers |= dict.fromkeys((signal.SIGINT, signal.SIGHUP), self._forward)
        else:
            handlers |= dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._record)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del handlers[signal.SIGHUP]
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._streams = sys.stdout, sys.stderr
        if self._terminals:
            sys.stdout, sys.stderr = (_Terminal(stream, self._drop_output) for stream in self._streams)

    def _record(self, number: int, frame: types.FrameType | None):
        self._drop_output()
        logging.warning("%s: saving, then stopping", signal.Signals(number).name)
        self._asked = True
        signal.signal(number, self._previous[number])

    def _forward(self, number: int, frame: types.FrameType | None):
        self._drop_output()
        signal.signal(number, self._previous[number])
        signal.raise_signal(signal.SIGTERM)

    def _drop_output(self):
        """Redirects output to closed terminals to /dev/null, because every write would raise."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                with open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), descriptor)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; with several processes, call it after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            logging.warning("SIGTERM to one of the processes: saving, then stopping")
            return True
        return self._asked

    def close(self) -> None:
        """Restores the previous handlers and streams."""
        sys.stdout, sys.stderr = self._streams
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Terminal:
    """A stream to a terminal. The one that is closed fails a write before the handler of SIGHUP can run."""

    def __init__(self, stream: TextIO, drop_output: Callable[[], None]):
        self._stream, self._drop_output = stream, drop_output

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self):
        try:
            yield
        except OSError:
            self._drop_output()


def check_health(metrics: Mapping, step: int, examples: Mapping[str, int], limits: Mapping) -> None:
    """Checks a step's metrics against the failure limits.

    Args:
      metrics: the step's, on the host, equal on all hosts.
      step: the step.
      examples: {stream: number of examples so far}.
      limits: config.failure_limits.

    Raises:
      TrainingFailed: if too many consecutive steps were skipped, examples are missing, or too large a
        fraction of a stream's recent examples was replaced.
    """
    skipped = int(metrics["skipped_in_a_row"])
    if metrics["missing_examples"]:
        raise TrainingFailed(
            f"step {step}: there is no usable record for {int(metrics['missing_examples'])} examples, and no "
            "usable neighbour to replace them; the warnings of the hosts that read them give the reasons"
        )
    if skipped >= limits["skipped_in_a_row"]:
        raise TrainingFailed(
            f"step {step}: the loss, its gradient or the update was not finite {skipped} times in a row "
            "(config.failure_limits.skipped_in_a_row)"
        )
    for stream, seen in examples.items():
        fraction = float(metrics[f"replaced_fraction/{stream}"])
        # A fraction of a few dozen examples is not meaningful.
        if seen >= 100 and fraction > limits["replaced_fraction"]:
            raise TrainingFailed(
                f"step {step}: {fraction:.1%} of the last {min(seen, limits['window_examples'])} examples of "
                f"streams.{stream} were unusable and replaced, above config.failure_limits.replaced_fraction "
                f"= {limits['replaced_fraction']}; the hosts' warnings name some"
            )
