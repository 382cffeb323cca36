"""The device mesh: axes ("data", "fsdp", "tensor")."""

import functools
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from big_ssl.parallel.notices import warn_once

AXES = ("data", "fsdp", "tensor")
# The axes that a batch is split over, and how.
BATCH_AXES = ("data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)


def sizes_for(device_kind: str, sizes: Mapping[str, int], rules: Sequence) -> Mapping[str, int]:
    """The mesh for this hardware: of the first of `rules`, pairs of (pattern, {axis: size}), whose
    pattern is found in device_kind ("TPU v5 lite", "NVIDIA H100 80GB HBM3"); else `sizes`."""
    return next((own for pattern, own in rules if re.search(pattern, device_kind)), sizes)


def make_mesh(sizes: Mapping[str, int], devices=None) -> Mesh:
    """A mesh over all devices. sizes: {axis: size}, one of which may be -1, "what is left".

    On fewer devices than the sizes ask for, the axes shrink to (n, 1, 1), with a warning: every config
    runs on one device. Over several TPU slices "data" is split between them, the other axes stay
    inside one. Raises ValueError where the sizes cannot divide the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    if any(sizes[axis] > size for axis, size in zip(AXES, shape, strict=True)):
        wanted = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size not in (1, -1))
        warn_once(
            f"mesh: {wanted} is more than the {len(devices)} devices: only the batch is split, "
            "and every device holds the whole state"
        )
    return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The sizes of AXES on so many devices, as `make_mesh` has them."""
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if fixed > devices:
        shape, fixed = [-1, 1, 1], 1
    if devices % fixed or (-1 not in shape and fixed != devices):
        raise ValueError(f"mesh: {dict(sizes)} does not divide {devices} devices")
    return tuple(devices // fixed if size == -1 else size for size in shape)


def _arrange(shape, devices):
    """The devices in an array of this shape, neighbours in the machine next to each other.

    Splitting a physical axis over two of the mesh's is allowed: 16 ways on 4x8x8 chips need it.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ValueError(f"mesh: data is {shape[0]}; it must be a multiple of the {slices} TPU slices")
    inside = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(
        inside, (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def warm_up_collectives(mesh: Mesh) -> None:
    """Opens the connections among all devices and along each axis, while all processes are here.

    On CPU a process waits 30 s at a first collective operation for the others to come to it as
    well, and the first step is one that they come to after compiling, each at its own pace.
    """
    if jax.process_count() == 1:
        return
    ones = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, PartitionSpec(AXES)), lambda index: np.ones(mesh.size)[index]
    )
    for axes in (AXES, *((axis,) for axis in AXES)):
        total = functools.partial(jax.lax.psum, axis_name=axes)
        spec = PartitionSpec(AXES)
        mapped = jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        jax.block_until_ready(jax.jit(mapped)(ones))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int[local B], ascending: the rows of a global batch that this process's devices hold.

    Not simply its share in order: on a pod neighbours in the mesh need not be of one host.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def global_batch(mesh: Mesh, batch):
    """The global arrays of which this process holds `batch`, NumPy arrays [local B, ...]: the
    rows that `local_rows` names, in that order.

    Not device_put: with several hosts that wants the same array on each of them.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def from_every_host(mesh: Mesh, batch):
    """Global arrays, split like a batch, of NumPy arrays that every process holds whole."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index]), batch
    )
