"""Compiling for tests: LLVM's passes cost more than tiny runs do."""

import contextlib

import jax


@contextlib.contextmanager
def quickly():
    """Without most optimisations, in what is compiled within."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
