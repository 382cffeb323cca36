"""The device mesh: axes ("data", "fsdp", "tensor")."""

import functools
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(sizes: Mapping[str, int], devices=None) -> Mesh:
    """A mesh over all devices. sizes: {axis: size}, one of which may be -1, "what is left".

    On fewer devices than the sizes ask for, the axes shrink to (n, 1, 1): every config runs
    on one device. Raises ValueError where the sizes cannot divide the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if fixed > len(devices):
        shape, fixed = [-1, 1, 1], 1
    if len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
        raise ValueError(f"mesh: {dict(sizes)} does not divide {len(devices)} devices")
    shape = [len(devices) // fixed if size == -1 else size for size in shape]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def connect(mesh: Mesh) -> None:
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


def batch_ways(mesh: Mesh) -> int:
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
