"""The training step of a config, without its data: milliseconds a step and examples a second.

    python -m benchmarks.train_step --config=configs/align_l2.py:demo
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.train_step --config=configs/align_l2.py:demo

The first step, which compiles, is timed apart. The batch is made of random pixels and words.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches
from big_ssl.training.setup import set_up

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps to time.")


def random_batch(config, vocab_size: int) -> dict:
    """{stream: batch} of the config's shapes, NumPy."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == bool:
            return np.ones(leaf.shape, bool)
        high = 256 if leaf.dtype == np.uint8 else vocab_size
        return rng.integers(5, high, leaf.shape, dtype=leaf.dtype)

    batch = jax.tree.map(fill, batches.abstract_global_batch(config, None))
    for stream in batch.values():
        stream["data_errors"] = {name: np.zeros_like(marks) for name, marks in stream["data_errors"].items()}
    return batch


def main(_) -> None:
    config = _CONFIG.value.to_dict()
    setup = set_up(config)
    batch = mesh_lib.global_batch(setup.mesh, random_batch(config, setup.tokenizer.vocab_size))
    state, times = setup.init(), []
    for _ in range(_STEPS.value + 1):
        began = time.perf_counter()
        state, metrics = setup.step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    first, *rest = times
    median = statistics.median(rest)
    examples = sum(stream["batch_size"] for stream in config["streams"].values())
    print(
        f"{config['name']}: first step {first:.1f} s, then {median * 1e3:.0f} ms median "
        f"({min(rest) * 1e3:.0f} to {max(rest) * 1e3:.0f}), {examples / median:.0f} examples/s"
    )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
