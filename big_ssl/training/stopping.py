"""Stopping a run: asked to from outside, or because it has gone wrong."""

import signal
import types

import jax
from absl import logging
from jax.experimental import multihost_utils


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says why and where."""


class StopRequest:
    """Remembers SIGTERM and SIGINT, so that the loop can save and leave between two steps.

    A second signal has its usual effect. With several hosts, the signal on any of them stops
    all at the same step, which JAX's preemption service agrees on.
    """

    def __init__(self):
        self._asked = False
        self._previous = {
            number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _remember(self, number: int, frame: types.FrameType | None):
        logging.warning("%s: saving, then stopping", signal.Signals(number).name)
        self._asked = True
        signal.signal(number, self._previous[number])

    def reached(self, step: int) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() > 1:
            return self._asked or multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def check_health(counters, step: int, examples: int, limits) -> None:
    """Raises TrainingFailed where too many steps in a row were not finite, or too large a part
    of the examples had to be replaced.

    counters: TrainState.counters on the host; examples: seen so far; limits: config.faults.
    """
    skipped, images, texts = (
        int(counters[name]) for name in ("skipped_in_a_row", "replaced_images", "replaced_texts")
    )
    if skipped >= limits["skipped_in_a_row"]:
        raise TrainingFailed(
            f"step {step}: the loss or its gradient was not finite {skipped} times in a row "
            "(config.faults.skipped_in_a_row)"
        )
    # A fraction of a few dozen examples says nothing yet.
    if examples >= 100 and max(images, texts) > limits["replaced_fraction"] * examples:
        raise TrainingFailed(
            f"step {step}: {images} pictures and {texts} texts of {examples} examples were unusable, "
            f"above config.faults.replaced_fraction = {limits['replaced_fraction']}"
        )
