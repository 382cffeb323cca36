"""Randomness as a function of (seed, step, name), so that nothing random is checkpointed."""

import zlib

import jax


def named_key(key, name: str):
    """The key of one named use of randomness under `key`; the same for the same name, always."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def step_key(seed: int, step):
    """The key of one training step."""
    return jax.random.fold_in(jax.random.key(seed), step)
