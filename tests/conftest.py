"""Every test runs on eight CPU devices, without a display, with compiled programs kept between runs."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
# LLVM's passes cost more than tiny programs gain by them, in this process and in those that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
from absl import flags

from tests.emulators import gcs, gcs_folder, s3, s3_folder

__all__ = ["gcs", "gcs_folder", "s3", "s3_folder"]  # fixtures of all tests

# Before any test touches a device: jax reads these once.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Grain reads absl flags in its workers and raises where nobody has parsed a command line.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def pytest_configure(config):
    """Keeps compiled programs beside pytest's cache, so that a second run compiles almost nothing."""
    cache = getattr(config, "cache", None)  # absent under -p no:cacheprovider
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("jax")))
        # All of them: the workers, and the processes that tests start, share what one has compiled.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
