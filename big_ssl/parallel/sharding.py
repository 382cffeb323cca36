"""Where each array of the state lives: one automatic rule."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_ssl.parallel.stacked import is_stacked

# Arrays smaller than this stay whole on every device: gathering them would cost more.
_MIN_ELEMENTS = 2**16


def fsdp_spec(shape: tuple[int, ...], ways: int) -> PartitionSpec:
    """Splits the largest axis that `ways` divides over "fsdp"; small arrays stay whole."""
    axes = [i for i, size in enumerate(shape) if size % ways == 0]
    if ways == 1 or not axes or math.prod(shape) < _MIN_ELEMENTS:
        return PartitionSpec()
    largest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*(None,) * largest, "fsdp")


def stacked_spec(shape: tuple[int, ...], ways: int) -> PartitionSpec:
    """Places a stack [layers, ...] as each of its layers would be: a loop over layers reads one
    at a time, and split over layers it would gather them all."""
    spec = fsdp_spec(shape[1:], ways)
    return PartitionSpec(None, *spec) if spec else spec


def state_shardings(mesh: Mesh, abstract_state):
    """A NamedSharding for every leaf. Parameters, optimiser moments and averages have the same
    shapes, so one rule on shapes puts them in the same places."""

    def place(path, leaf):
        rule = stacked_spec if is_stacked(path) else fsdp_spec
        return NamedSharding(mesh, rule(leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def bytes_per_device(leaf, sharding: NamedSharding) -> int:
    """Bytes that one device holds of an array of leaf's shape and dtype."""
    return math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
