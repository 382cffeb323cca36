"""Sharding of the train state: one automatic rule, and overrides by config."""

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from big_ssl.parallel.mesh import AXES
from big_ssl.parallel.stacked import is_stacked

# Smaller arrays are replicated: gathering them would cost more.
_MIN_ELEMENTS = 2**16
# Larger arrays are replicated only by an explicit override: they take 16 MiB in float32, and three times
# that with the optimiser's moments.
_LARGE_ELEMENTS = 2**22


def fsdp_spec(shape: tuple[int, ...], num_shards: int) -> PartitionSpec:
    """Shards the largest axis that num_shards divides over "fsdp"; small arrays are replicated."""
    axes = [i for i, size in enumerate(shape) if size % num_shards == 0]
    if num_shards == 1 or not axes or math.prod(shape) < _MIN_ELEMENTS:
        return PartitionSpec()
    largest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*(None,) * largest, "fsdp")


def stacked_spec(shape: tuple[int, ...], num_shards: int) -> PartitionSpec:
    """Shards a stack [layers, ...] like a single layer, never over the layer axis.

    A loop over layers reads one at a time; sharded over layers, it would gather all of them.
    """
    spec = fsdp_spec(shape[1:], num_shards)
    return PartitionSpec(None, *spec) if spec else spec


def state_shardings(mesh: Mesh | AbstractMesh, abstract_state, overrides: Sequence = ()):
    """A NamedSharding for every leaf of the state.

    Parameters, optimiser moments and averages have equal shapes, so one rule on shapes shards them alike.

    Args:
      mesh: the mesh.
      abstract_state: pytree of arrays or ShapeDtypeStructs.
      overrides: config.sharding, pairs (regex, axes). The first regex found in a leaf's path, such as
        "params/encoders/text/word/embedding", decides: axes names a mesh axis, or None, for each of the
        leaf's axes; () replicates it. A stack's first axis, the layers, must be None.

    Returns:
      A pytree of NamedShardings.

    Raises:
      ValueError: for axes that a leaf lacks or that do not divide it, for a regex that matches no path, and
        for a large leaf without an override that the rule can't split.
    """
    matched = set()

    def place(path, leaf):
        name = path_name(path)
        for pattern, axes in overrides:
            if re.search(pattern, name):
                matched.add(pattern)
                if is_stacked(path) and axes and axes[0] is not None:
                    raise ValueError(
                        f"sharding: {pattern!r} splits the layers of {name} {leaf.shape}, which a loop reads "
                        "one at a time; its first axis must be None"
                    )
                return NamedSharding(mesh, _checked_spec(mesh, pattern, axes, name, leaf.shape))
        rule = stacked_spec if is_stacked(path) else fsdp_spec
        spec = rule(leaf.shape, mesh.shape["fsdp"])
        if not spec and mesh.shape["fsdp"] > 1 and math.prod(leaf.shape) >= _LARGE_ELEMENTS:
            raise ValueError(
                f"{name} {leaf.shape} would stay whole on every device: none of its axes is a multiple of "
                f'fsdp = {mesh.shape["fsdp"]}; place it by config.sharding, (("{name}$", ()),) to leave it so'
            )
        return NamedSharding(mesh, spec)

    placed = jax.tree_util.tree_map_with_path(place, abstract_state)
    for pattern, _ in overrides:
        if pattern not in matched:
            raise ValueError(f"sharding: {pattern!r} is found in no path of the state")
    return placed


def _checked_spec(mesh, pattern, axes, name, shape):
    """Validates an override against the leaf; returns its PartitionSpec."""
    if len(axes) > len(shape):
        raise ValueError(f"sharding: {pattern!r} gives {len(axes)} axes, but {name} is {shape}")
    for axis, size in zip(axes, shape, strict=False):
        if axis is not None and axis not in AXES:
            raise ValueError(f"sharding: {pattern!r} names the axis {axis!r}; there are {', '.join(AXES)}")
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"sharding: {pattern!r} splits {name} {shape} over {axis} = {mesh.shape[axis]}, "
                f"which does not divide {size}"
            )
    return PartitionSpec(*axes)


def path_name(path) -> str:
    """A leaf's path as text: "params/encoders/image/stem_bn/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def bytes_per_device(leaf, sharding: NamedSharding) -> int:
    """Bytes per device of an array of leaf's shape and dtype."""
    return math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
