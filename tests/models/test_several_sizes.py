"""Pictures of several sizes through one tower at once: what each gives alone, and no exchange of examples."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from big_ssl.models import vit
from big_ssl.training.flops import forward_flops

KEY = jax.random.key(0)
UNOPTIMISED = dict(compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
TINY = vit.DINOV2 | dict(patch=4, width=8, depth=2, heads=2, image_size=8, registers=2)
LARGE, SMALL = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 8, 12, 3), (6, 4, 8, 3)))
MASK = RNG.random((4, 6)) < 0.5


def drawn(model):
    """Random in every entry."""
    rng, shapes = np.random.default_rng(1), jax.eval_shape(model.init, KEY, LARGE)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        pytest.param(dict(rope_base=100.0, scan=True, remat="full"), marks=pytest.mark.slow),
        pytest.param(dict(pooling="map", class_token=False, pre_norm=True), marks=pytest.mark.slow),
    ],
    ids=["table", "rotary", "map"],
)
def test_together_is_each_alone(options):
    """Outputs, and the gradient by all weights, of two sizes of which one is masked."""
    model = vit.ViT(**(TINY | options))
    variables = drawn(model)

    def loss(outputs):
        return sum((x * jnp.cos(jnp.arange(x.size).reshape(x.shape))).sum() for x in jax.tree.leaves(outputs))

    def together(variables):
        outputs = model.apply(variables, (LARGE, SMALL), mask=(MASK, None), intermediate=(0,))
        return loss(outputs), outputs

    def alone(variables):
        outputs = (
            model.apply(variables, LARGE, mask=MASK, intermediate=(0,)),
            model.apply(variables, SMALL, intermediate=(0,)),
        )
        return loss(outputs), outputs

    (_, found), grads = jax.jit(jax.value_and_grad(together, has_aux=True), **UNOPTIMISED)(variables)
    (_, expected), own = jax.jit(jax.value_and_grad(alone, has_aux=True), **UNOPTIMISED)(variables)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)
    # float32 sums in another order; a softmax does not see its keys' bias, whose gradient is rounding alone.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(own))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6 * largest), grads, own)


def test_as_many_masks_as_sizes():
    with pytest.raises(ValueError, match=r"^vit: images are of 2 sizes, and there are 1 masks"):
        vit.ViT(**TINY).init(KEY, (LARGE, SMALL), mask=(None,))


def test_a_subset_of_each_size_is_computed():
    """At a rate of a half, half the work of the layers."""
    model = vit.ViT(**(TINY | dict(depth=1, drop_path=0.5, drop_path_groups=2, patch=4)))
    given = drawn(model)

    def flops(model, train):
        apply = functools.partial(model.apply, given, (LARGE, SMALL[:4]), train)
        return forward_flops(lambda key: apply(rngs=dict(dropout=key)), KEY)

    before = flops(model.clone(depth=0), False)
    assert flops(model, True) - before == (flops(model, False) - before) / 2


def test_no_example_leaves_its_device():
    """Over four devices, forwards and backwards; what moves is no larger than a kernel's gradient."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    model = vit.ViT(**(TINY | dict(depth=1, drop_path=0.5, drop_path_groups=4)))

    def loss(params, large, small, key):
        outputs = model.apply(params, (large, small), True, rngs=dict(dropout=key))
        return sum((x.astype(jnp.float32) ** 2).sum() for x in jax.tree.leaves(outputs))

    params = jax.eval_shape(model.init, KEY, LARGE)
    large, small = (jax.ShapeDtypeStruct((n, side, side, 3), jnp.float32) for n, side in ((16, 8), (32, 4)))
    step = jax.jit(jax.grad(loss), in_shardings=(whole, split, split, whole), **UNOPTIMISED)
    text = step.lower(params, large, small, KEY).compile().as_text()
    assert not re.findall(r"(?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    moved = re.findall(r" = (.*) all-reduce(?:-start)?\(", text)
    sizes = [
        np.prod([int(n) for n in dims.split(",") if n])
        for line in moved
        for dims in re.findall(r"\w+\[([\d,]*)\]", line)
    ]
    assert max(sizes) <= max(leaf.size for leaf in jax.tree.leaves(params))
