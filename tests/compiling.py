"""Fast compilation for tests, whose tiny runs cost less than LLVM's passes."""

import contextlib

import jax


@contextlib.contextmanager
def quickly():
    """Compiles without most optimisations inside the context."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
