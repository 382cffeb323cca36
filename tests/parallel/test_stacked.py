"""A layer stack is sharded like each of its layers."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from big_ssl.models import layer_stack
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.parallel import sharding

LAYERS, WIDTH, BATCH = 64, 16, 8


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        # The layer axis is the largest one that two divides, and is not taken.
        ((4096, 256, 257), PartitionSpec(None, "fsdp")),
        ((24, 1024, 4096), PartitionSpec(None, None, "fsdp")),
        ((24, 255, 257), PartitionSpec()),
        # "Small" is measured on a single layer: a loop gathers one at a time.
        ((4096, 255, 256), PartitionSpec()),
        ((4096,), PartitionSpec()),
    ],
)
def test_the_rule_never_splits_the_layer_axis(shape, spec):
    assert sharding.stacked_spec(shape, 2) == spec


def test_stacks_are_recognised_by_name_at_any_depth():
    leaf = jax.ShapeDtypeStruct((512, 256, 256), jnp.float32)
    tree = {"layer_stack": {"kernel": leaf}, "stacked": leaf, "layer0": {"kernel": leaf}}
    placed = sharding.state_shardings(mesh_lib.make_mesh(dict(data=-1, fsdp=2, tensor=1)), (tree, [tree]))
    for shardings in (placed[0], placed[1][0]):
        assert shardings["layer_stack"]["kernel"].spec == PartitionSpec(None, "fsdp")
        assert shardings["stacked"].spec == shardings["layer0"]["kernel"].spec == PartitionSpec("fsdp")


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        def call(layer, x, _):
            return x + 0.1 * jnp.tanh(layer(x))

        def make(name):
            return nn.Dense(WIDTH, name=name)

        return layer_stack.apply_layers(make, "layer", range(LAYERS), call, x, scan=True, remat="full")


def test_a_loop_over_sharded_layers_gathers_one_at_a_time_and_keeps_the_gradient(monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_ELEMENTS", WIDTH * WIDTH)
    mesh = mesh_lib.make_mesh(dict(data=4, fsdp=2, tensor=1))
    x = jax.random.normal(jax.random.key(0), (BATCH, WIDTH))
    params = jax.jit(Encoder().init)(jax.random.key(1), x)
    placed = jax.device_put(params, sharding.state_shardings(mesh, params))
    kernel = placed["params"]["layer_stack"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (LAYERS, WIDTH // 2, WIDTH)
    grad = jax.jit(jax.grad(lambda params, x: (Encoder().apply(params, x) ** 2).mean()))
    step = grad.lower(placed, mesh_lib.global_batch(mesh, np.asarray(x))).compile()
    gathered = re.findall(r"f32\[([\d,]*)\]\S* all-gather\(", step.as_text())
    assert gathered
    assert not [shape for shape in gathered if shape.startswith(f"{LAYERS},")], gathered
    actual, expected = step(placed, mesh_lib.global_batch(mesh, np.asarray(x))), grad(params, x)
    # float32 sums over the batch in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)
