"""Parameters split over devices and used whole: the same numbers, and no example computed twice."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_ssl.models.layer_stack import apply_layers
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel.sharding import state_shardings

BATCH, WIDTH, HIDDEN, LAYERS = 64, 128, 1024, 3


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(WIDTH, name="down")(nn.relu(nn.Dense(HIDDEN, name="up")(x)))


class Tower(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="stem")(x)
        call = lambda layer, x, own: layer(x)  # noqa: E731
        return apply_layers(Block, "layer", range(LAYERS), call, x, scan=self.scan, remat="full")


def compiled_gradient(scan, mesh):
    """(compiled gradient, its arguments), parameters and batch on the mesh."""
    tower = Tower(scan)
    x = np.random.default_rng(0).normal(size=(BATCH, 1024)).astype(np.float32)
    params = tower.init(jax.random.key(0), x)["params"]
    shardings = state_shardings(mesh, params)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)

    def loss(params, x):
        return (tower.apply({"params": fsdp.gather(params, specs)}, x) ** 2).mean()

    gradient = jax.jit(fsdp.within(mesh, jax.grad(loss)), out_shardings=shardings)
    arguments = jax.device_put(params, shardings), mesh_lib.global_batch(mesh, x)
    return gradient.lower(*arguments).compile(), arguments


@pytest.mark.parametrize("scan", [False, True])
def test_gradients_are_those_of_one_device_and_every_device_has_its_own_examples(scan):
    sizes = dict(data=2, fsdp=4, tensor=1)
    split, arguments = compiled_gradient(scan, mesh_lib.make_mesh(sizes))
    whole, own = compiled_gradient(
        scan, mesh_lib.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), split(*arguments), whole(*own)
    )
    shapes = set(re.findall(r"f32\[([\d,]+)\]", split.as_text()))
    local = f"{BATCH // 8},{HIDDEN}"
    assert local in shapes or f"{HIDDEN},{BATCH // 8}" in shapes
    # No device computes more examples than its own, and none a part of the hidden units only.
    wrong = {
        s
        for s in shapes
        if s in (f"{BATCH},{HIDDEN}", f"{BATCH},{HIDDEN // 4}", f"{BATCH // 2},{HIDDEN // 4}")
    }
    assert not wrong
    # The loop gathers one layer, not the stack.
    assert not any(s.startswith(f"{LAYERS},{WIDTH},{HIDDEN}") for s in shapes)


def test_what_is_split_over_tensor_stays_split():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    x = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    used = jax.jit(fsdp.within(mesh, lambda x: fsdp.gather(x, PartitionSpec("tensor", "fsdp"))))(x)
    assert used.sharding.shard_shape(used.shape) == (4, 8)


def test_without_a_mesh_nothing_happens():
    params = dict(w=jnp.ones((512, 512)))
    assert fsdp.gather_layer(params) is params
