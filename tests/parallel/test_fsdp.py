"""FSDP: the same numbers as on one device, and no example computed twice."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.models import encoders
from big_ssl.models.layer_stack import apply_layers
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import state_shardings
from big_ssl.planning import hlo

BATCH, WIDTH, HIDDEN, LAYERS = 64, 128, 1024, 3


class Block(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(HIDDEN, dtype=self.dtype, name="up")(x))
        return x + nn.Dense(WIDTH, dtype=self.dtype, name="down")(hidden)


class Encoder(nn.Module):
    scan: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, dtype=self.dtype, name="stem")(x)
        call = lambda layer, x, _: layer(x)  # noqa: E731
        block = functools.partial(Block, self.dtype)
        return apply_layers(block, "layer", range(LAYERS), call, x, scan=self.scan, remat="full")


def lowered_gradient(scan, mesh, overrides=(), dtype=jnp.float32):
    """(lowered loss and gradient, their arguments), with parameters and batch on the mesh."""
    encoder = Encoder(scan, dtype)
    x = np.random.default_rng(0).normal(size=(BATCH, 1024)).astype(np.float32)
    params = encoder.init(jax.random.key(0), x)["params"]
    shardings = state_shardings(mesh, params, overrides)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    dtypes = encoders.compute_dtypes(params, dtype)

    def loss(params, x):
        return (
            encoder.apply({"params": fsdp.gather(params, specs, dtypes)}, x).astype(jnp.float32) ** 2
        ).mean()

    gradient = jax.jit(fsdp.within(mesh, jax.value_and_grad(loss)), out_shardings=(None, shardings))
    arguments = jax.device_put(params, shardings), mesh_lib.global_batch(mesh, x)
    return gradient.lower(*arguments), arguments


def compiled_gradient(scan, mesh, overrides=()):
    """(compiled loss and gradient, their arguments)."""
    lowered, arguments = lowered_gradient(scan, mesh, overrides)
    return lowered.compile(), arguments


ONE = dict(data=1, fsdp=1, tensor=1)


def assert_as_on_one_device(scan, split, arguments):
    single, single_arguments = compiled_gradient(scan, mesh_lib.make_mesh(ONE, jax.devices()[:1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        split(*arguments),
        single(*single_arguments),
    )


@pytest.mark.parametrize("scan", [False, True])
def test_gradients_equal_one_devices_and_every_device_computes_its_own_examples(scan):
    sizes = dict(data=2, fsdp=4, tensor=1)
    split, arguments = compiled_gradient(scan, mesh_lib.make_mesh(sizes))
    assert_as_on_one_device(scan, split, arguments)
    shapes = set(re.findall(r"f32\[([\d,]+)\]", split.as_text()))
    local = f"{BATCH // 8},{HIDDEN}"
    assert local in shapes or f"{HIDDEN},{BATCH // 8}" in shapes
    # No device computes other examples than its own, or a part of the hidden units only.
    wrong = {
        s
        for s in shapes
        if s in (f"{BATCH},{HIDDEN}", f"{BATCH},{HIDDEN // 4}", f"{BATCH // 2},{HIDDEN // 4}")
    }
    assert not wrong
    # The loop gathers one layer, not the stack.
    assert not any(s.startswith(f"{LAYERS},{WIDTH},{HIDDEN}") for s in shapes)


def test_a_split_over_tensor_stays_split():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    x = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    used = jax.jit(fsdp.within(mesh, lambda x: fsdp.gather(x, PartitionSpec("tensor", "fsdp"), x.dtype)))(x)
    assert used.sharding.shard_shape(used.shape) == (4, 8)


# Megatron's sharding of two layers (Shoeybi et al. 2019, arXiv 1909.08053): one all-reduce after both.
TENSOR = (
    ("stack/up/kernel$", (None, "fsdp", "tensor")),
    ("stack/up/bias$", (None, "tensor")),
    ("stack/down/kernel$", (None, "tensor", "fsdp")),
)


def test_an_override_applies_inside_the_loop_over_layers():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    split, arguments = compiled_gradient(True, mesh, TENSOR)
    assert_as_on_one_device(True, split, arguments)
    program = hlo.parse(split.as_text())
    axes = [
        axis
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode.startswith("all-gather")
        for group in hlo.replica_groups(instruction.attributes, mesh.size)
        for axis in axes_of(mesh, group)
    ]
    assert set(axes) == {"fsdp"}


def axes_of(mesh, group):
    """The mesh's axes along which the devices of a group differ."""
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    positions = np.array([np.argwhere(ids == mesh.devices.flat[i].id)[0] for i in group])
    return [axis for axis, along in zip(mesh.axis_names, positions.T, strict=True) if len(set(along)) > 1]


def test_split_parameters_are_cast_before_they_are_gathered():
    """Checked before compilation: XLA's CPU compiler turns bfloat16 collectives back into float32."""
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=4, tensor=1))
    lowered, _ = lowered_gradient(True, mesh, dtype=jnp.bfloat16)
    constraints = re.findall(r"sharding_constraint .*<@mesh, (\[.*?\])> : tensor<(\S+)>", lowered.as_text())
    kernels = [(spec, shape) for spec, shape in constraints if f"{WIDTH}x{HIDDEN}x" in shape]
    assert {shape.rpartition("x")[2] for _, shape in kernels} == {"bf16"}, constraints
    assert {"fsdp" in spec for spec, _ in kernels} == {True, False}
