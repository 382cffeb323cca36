"""The parts of a run's set-up: each fails on all hosts or on none, and says so if it takes long."""

import contextlib
import threading
from collections.abc import Iterator

import jax

from big_ssl.parallel import distributed
from big_ssl.training import progress
from big_ssl.training.requirements import RequirementsError

# What takes less is over before it can be read.
_SECONDS = 3.0


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    """One part of the set-up, on all hosts at once, in which none waits for another.

    An error on one host ends all of them (see distributed.raise_on_all_hosts), the others by
    RequirementsError. what: as in `announced`.
    """
    with announced(what), distributed.raise_on_all_hosts(RequirementsError):
        yield


@contextlib.contextmanager
def announced(what: str, seconds: float = _SECONDS) -> Iterator[None]:
    """Prints what a run is doing, "reading the weights", once that has taken some seconds."""
    timer = threading.Timer(seconds, lambda: progress.console.print(f"{what} ..."))
    timer.daemon = True
    if jax.process_index() == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
