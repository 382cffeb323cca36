"""Phases of a run's set-up: each fails on all hosts or on none, and prints its name if it takes long."""

import contextlib
import threading
from collections.abc import Iterator

import jax

from big_ssl.parallel import distributed
from big_ssl.training import progress
from big_ssl.training.requirements import RequirementsError

# Shorter phases are not printed.
_SECONDS = 3.0


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    """A phase of the set-up that all hosts run at once, without waiting for one another.

    An error on one host is raised on all (see distributed.raise_on_all_hosts), on the others as
    RequirementsError. what: as in `announced`.
    """
    with announced(what), distributed.raise_on_all_hosts(RequirementsError):
        yield


@contextlib.contextmanager
def announced(what: str, seconds: float = _SECONDS) -> Iterator[None]:
    """Prints what a run is doing, such as "reading the weights", once it has taken `seconds`."""
    timer = threading.Timer(seconds, lambda: progress.console.print(f"{what} ..."))
    timer.daemon = True
    if jax.process_index() == 0:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
