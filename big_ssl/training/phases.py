"""What a run is doing while it does not step."""

import contextlib
import threading
from collections.abc import Iterator

import jax

from big_ssl.training import progress

# What is done sooner needs no explanation.
_SECONDS = 3.0


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Prints the name of what happens inside once it has taken a few seconds; on process 0 alone."""
    if jax.process_index() != 0:
        yield
        return
    timer = threading.Timer(_SECONDS, lambda: progress.console.print(f"{name} …"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
