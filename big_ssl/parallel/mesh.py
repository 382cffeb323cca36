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
# The axes over which a batch is sharded, and its PartitionSpec.
BATCH_AXES = ("data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)


def sizes_for(device_kind: str, sizes: Mapping[str, int], rules: Sequence) -> Mapping[str, int]:
    """Chooses the mesh sizes for this hardware.

    Args:
      device_kind: JAX's name, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3".
      sizes: {axis: size}, used if no rule matches.
      rules: pairs (regex, {axis: size}); the first whose regex matches device_kind wins.

    Returns:
      {axis: size}.
    """
    return next((matched for pattern, matched in rules if re.search(pattern, device_kind)), sizes)


def make_mesh(sizes: Mapping[str, int], devices=None) -> Mesh:
    """A mesh over all devices. sizes: {axis: size}; one size may be -1, for all remaining devices.

    If there are fewer devices than the sizes require, the axes shrink to (n, 1, 1), with a warning: every
    config runs on one device. "data" spans TPU slices; the other axes stay inside one slice. Raises
    ValueError if the sizes do not divide the devices.
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
    """The sizes of AXES on this number of devices, see `make_mesh`."""
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if fixed > devices:
        shape, fixed = [-1, 1, 1], 1
    if devices % fixed or (-1 not in shape and fixed != devices):
        raise ValueError(f"mesh: {dict(sizes)} does not divide {devices} devices")
    return tuple(devices // fixed if size == -1 else size for size in shape)


def _arrange(shape, devices):
    """Arranges the devices in an array of this shape, with physical neighbours adjacent.

    A physical axis may be split over two mesh axes: fsdp = 16 on 4x8x8 chips needs it.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ValueError(f"mesh: data is {shape[0]}; it must be a multiple of the {slices} TPU slices")
    shape_per_slice = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(
        shape_per_slice, (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def warm_up_collectives(mesh: Mesh) -> None:
    """Opens the connections among all devices and along each axis, while all processes are in step.

    On CPU, a process waits at most 30 s for the others in its first collective, and the processes reach the
    first step's collectives after compiling, each at its own pace.
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
    """The sharding of a batch: leading axis over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of shards of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold: int[local B], ascending.

    Not a contiguous range: on a pod, neighbours in the mesh may belong to different hosts.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def global_batch(mesh: Mesh, batch):
    """Assembles global arrays from each process's part.

    batch: pytree of NumPy arrays [local B, ...], the rows in `local_rows`, in that order. Not device_put,
    which requires the same array on every host.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def from_every_host(mesh: Mesh, batch):
    """Shards, like a batch, NumPy arrays that every process holds in full."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index]), batch
    )
