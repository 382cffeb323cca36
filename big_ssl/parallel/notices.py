"""Notices of a run: what it does otherwise than the config suggests, each told once, by one process."""

import functools

import jax
from absl import logging


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, the first time in this process, on process 0 only."""
    if jax.process_index() == 0:
        logging.warning("%s", message)
