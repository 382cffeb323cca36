"""The scanned towers against the unrolled ones on the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import bert, efficientnet, resnet, text_transformer, transformer, vit
from big_ssl.models.layer_layouts import stack_layers, unstack_layers

# Halves the time to compile.
UNOPTIMISED = dict(compiler_options={"xla_backend_optimization_level": 0})
# The second stage has a block that strides, and a stack of two.
IMAGE = functools.partial(
    efficientnet.EfficientNet, width=0.25, stages=((3, 16, 1, 2, 1), (3, 24, 3, 2, 2)), drop_connect=0.4
)
TEXT = functools.partial(bert.Bert, 30, width=8, depth=3, heads=2, max_len=8, dropout=0.0)
VIT = functools.partial(vit.ViT, patch=4, width=8, depth=3, heads=2, image_size=8, drop_path=0.4)
DINO = functools.partial(
    VIT, **vit.DINOV2 | dict(depth=2, feed_forward="swiglu", registers=2, layer_scale=0.5)
)
CAUSAL = functools.partial(text_transformer.TextTransformer, 30, width=8, depth=3, heads=2, max_len=8)
RESNET = functools.partial(resnet.ModifiedResNet, width=8, blocks=(1, 3), image_size=32, pooled_dim=4)
KEY = jax.random.key(0)


def inputs(tower):
    rng = np.random.default_rng(0)
    if tower in (IMAGE, VIT, DINO, RESNET):
        side = 33 if tower is RESNET else 9
        return (rng.normal(size=(4, side, side, 3)).astype(np.float32),)
    return rng.integers(0, 30, (3, 6)), np.arange(6) < np.array([[6], [4], [1]])


@functools.cache
def variables(tower):
    """Random in every entry, in the unrolled layout."""
    shapes = jax.eval_shape(functools.partial(tower().init, train=False), KEY, *inputs(tower))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.uniform(-0.2, 1.0, leaf.shape).astype(np.float32) ** 2, shapes)


def trained(tower, variables, **options):
    """Outputs, new statistics and gradients of a fixed projection of the outputs."""
    given = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        rngs = dict(dropout=jax.random.key(2))
        outputs, new = tower(**options).apply(
            {"params": params, **given}, *inputs(tower), train=True, rngs=rngs, mutable=["batch_stats"]
        )
        leaves = jax.tree.leaves(outputs)
        # Far from a plain sum, to which what lies before a norm has no gradient.
        return sum((jnp.cos(jnp.arange(leaf.size)) * leaf.ravel()).sum() for leaf in leaves), (outputs, new)

    grads, (outputs, new) = jax.jit(jax.grad(loss, has_aux=True), **UNOPTIMISED)(variables["params"])
    return dict(outputs=outputs, stats=new, grads=grads)


def named_leaves(tree):
    """[(path, array)] of all arrays, those of a pyramid included."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(tuple(getattr(key, "key", key) for key in path), leaf) for path, leaf in leaves]


@pytest.mark.parametrize(
    ("tower", "stacks"),
    [
        pytest.param(IMAGE, efficientnet.EfficientNet.stacks, marks=pytest.mark.slow),
        (TEXT, bert.Bert.stacks),
        (VIT, vit.ViT.stacks),
        pytest.param(DINO, vit.ViT.stacks, marks=pytest.mark.slow),
        (CAUSAL, text_transformer.TextTransformer.stacks),
        pytest.param(RESNET, resnet.ModifiedResNet.stacks, marks=pytest.mark.slow),
    ],
    ids=["efficientnet", "bert", "vit", "dino", "text_transformer", "resnet"],
)
def test_scanned_and_recomputed_is_unrolled(tower, stacks, monkeypatch):
    # Chance put aside, the rate of each block shows in the outputs.
    monkeypatch.setattr(efficientnet.MBConv, "_drop_connect", lambda self, x, rate: x * (1 - rate))
    monkeypatch.setattr(
        transformer.Layer, "_drop_path", lambda self, y, rate, train: y if rate is None else y * (1 - rate)
    )
    monkeypatch.setattr(
        transformer,
        "add_on_subset",
        lambda x, branch, rate, *_: jax.tree.map(lambda x, y: x + y * (1 - rate), x, branch(x)),
    )
    apart = trained(tower, variables(tower))
    loop = trained(tower, stack_layers(variables(tower), stacks), scan=True, remat="full")
    found = unstack_layers(loop, stacks)
    assert jax.tree.structure(found) == jax.tree.structure(apart)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(apart["grads"])) > 0.1
    # float32 sums in another order; an entry's error is relative to the largest of its array.
    apart = dict(named_leaves(apart))
    for path, a in named_leaves(found):
        # A softmax does not see its keys' bias, whose gradient is rounding alone.
        largest = 1 if path[-2:] == ("key", "bias") else max(1e-2, np.abs(apart[path]).max())
        np.testing.assert_allclose(a, apart[path], rtol=1e-4, atol=1e-4 * largest)


def test_scanned_blocks_drop_whole_examples_by_chance():
    """And a tower without drop-connect needs no key at all."""
    given = stack_layers(variables(IMAGE), efficientnet.EfficientNet.stacks)

    @functools.partial(jax.jit, static_argnums=1)
    def run(key, rate):
        model = IMAGE(scan=True, remat="full", drop_connect=rate)
        rngs = {} if key is None else dict(dropout=key)
        return model.apply(given, *inputs(IMAGE), train=True, rngs=rngs, mutable=["batch_stats"])[0]["pooled"]

    one, same, two = (run(jax.random.key(seed), 0.9) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 1e-3
    assert np.isfinite(run(None, 0.0)).all()
