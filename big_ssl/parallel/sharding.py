"""Where each array of the state lives: one automatic rule, and a config's exceptions to it."""

import math
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from big_ssl.parallel.mesh import AXES
from big_ssl.parallel.stacked import is_stacked

# Arrays smaller than this stay whole on every device: gathering them would cost more.
_MIN_ELEMENTS = 2**16
# Arrays of at least this may not stay whole unasked: 16 MiB in float32, and three times that
# with the optimiser's moments.
_LARGE_ELEMENTS = 2**22


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


def state_shardings(mesh: Mesh | AbstractMesh, abstract_state, overrides: Sequence = ()):
    """A NamedSharding for every leaf. Parameters, optimiser moments and averages have the same
    shapes, so one rule on shapes puts them in the same places.

    overrides: config.sharding, pairs of (pattern, axes): the first pattern that is found in a
    leaf's path, such as "params/encoders/text/word/embedding", says over which mesh axis each of
    the leaf's axes is split, None for whole; () leaves all of it whole. The first axis of a stack is that
    of its layers, and stays whole. Raises ValueError for axes that a leaf does not have, or that do not
    divide it, for a pattern that matches nothing, and where the rule can't split a large leaf that no
    pattern names.
    """
    used = set()

    def place(path, leaf):
        name = path_name(path)
        for pattern, axes in overrides:
            if re.search(pattern, name):
                used.add(pattern)
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
        if pattern not in used:
            raise ValueError(f"sharding: {pattern!r} is found in no path of the state")
    return placed


def _checked_spec(mesh, pattern, axes, name, shape):
    """The override as a spec, once it is known to fit the leaf."""
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
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def bytes_per_device(leaf, sharding: NamedSharding) -> int:
    """Bytes that one device holds of an array of leaf's shape and dtype."""
    return math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
