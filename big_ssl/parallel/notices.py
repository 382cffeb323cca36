"""Warnings about a run's fallbacks, each logged once, by one process."""

import functools

import jax
from absl import logging


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, once per process and on process 0 only."""
    if jax.process_index() == 0:
        logging.warning("%s", message)
