"""Layers in a stack against a plain loop over them, and what recomputing them does and does not change."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import convolutions, layer_stack
from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.layer_layouts import stack_layers, unstack_layers

DEPTH, STACKS = 3, {"layer": 0}
RATES = (0.2, 0.5, 0.9)
POLICIES = tuple(layer_stack.REMAT_POLICIES)
# Halves the time to compile.
UNOPTIMISED = dict(compiler_options={"xla_backend_optimization_level": 0})
# float32 sums in another order; all values are of order one.
CLOSE = dict(rtol=2e-5, atol=2e-5)


class Layer(nn.Module):
    """Both custom derivatives, running statistics, chance, a value of its own and a shared one."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, rate, context, train):
        channels = x.shape[0]
        kernel = self.param("depthwise", nn.initializers.normal(0.3), (3, 3, channels))
        y = convolutions.depthwise_conv(x, kernel.astype(x.dtype), 1, ((1, 1), (1, 1)))
        y = BatchNorm(name="bn")(y, train)
        mix = self.param("mix", nn.initializers.normal(0.3), (channels, channels))
        y = nn.silu(convolutions.pointwise_conv(y, mix.astype(x.dtype)) + context)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + jnp.asarray(rate, x.dtype) * y


class Tower(nn.Module):
    scan: bool
    remat: str
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, context, train):
        return layer_stack.apply_layers(
            functools.partial(Layer, self.dropout),
            "layer",
            range(DEPTH),
            lambda layer, x, rate: layer(x, rate, context, train),
            x,
            RATES,
            scan=self.scan,
            remat=self.remat,
        )


@functools.cache
def inputs():
    """(x: [C, B, H, W], context: [C, 1, 1, 1]), as float32."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 6, 3, 3)).astype(np.float32), rng.normal(size=(4, 1, 1, 1)).astype(np.float32)


@functools.cache
def variables():
    """Random in every entry, scales and statistics too, in the unrolled layout."""
    shapes = jax.eval_shape(functools.partial(Tower(False, "none").init, train=False), KEY, *inputs())
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.uniform(0.3, 1.0, leaf.shape).astype(np.float32), shapes)


KEY = jax.random.key(0)


def differentiated(forward, variables, train, dtype=jnp.float32):
    """(output, new statistics, gradients of parameters and both inputs) of forward(variables, x, context)."""
    stats = {"batch_stats": variables["batch_stats"]}
    direction = np.random.default_rng(2).normal(size=inputs()[0].shape)

    def loss(params, x, context):
        out, new = forward({"params": params, **stats}, x.astype(dtype), context.astype(dtype), train)
        return (out * direction).sum(), (out, new)

    function = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True), **UNOPTIMISED)
    grads, (out, new) = function(variables["params"], *inputs())
    return dict(out=out, stats=new, params=grads[0], inputs=grads[1:])


@functools.cache
def of_tower(scan, remat, train, dropout=0.0, dtype=jnp.float32):
    """What `differentiated` gives of the tower, in the unrolled layout."""

    def forward(variables, x, context, train):
        rngs = dict(dropout=jax.random.key(3))
        tower = Tower(scan, remat, dropout)
        return tower.apply(variables, x, context, train, rngs=rngs, mutable=["batch_stats"])

    given = stack_layers(variables(), STACKS) if scan else variables()
    found = differentiated(forward, given, train, dtype)
    return unstack_layers(found, STACKS) if scan else found


@functools.cache
def of_plain_loop(train):
    """The same by a loop over separate layers that knows nothing of layer_stack."""

    def forward(variables, x, context, train):
        stats = {}
        for i, rate in enumerate(RATES):
            own = {collection: variables[collection][f"layer{i}"] for collection in variables}
            x, new = Layer().apply(own, x, rate, context, train, mutable=["batch_stats"])
            stats[f"layer{i}"] = new["batch_stats"]
        return x, dict(batch_stats=stats)

    return differentiated(forward, variables(), train)


def assert_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


@pytest.mark.parametrize("remat", POLICIES)
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_outputs_gradients_and_statistics_are_a_plain_loops(scan, remat):
    """Statistics too: were a layer's update done again while recomputing, they would move twice."""
    found, expected = of_tower(scan, remat, train=True), of_plain_loop(train=True)
    assert_close(found, expected, **CLOSE)
    before, after = variables()["batch_stats"], found["stats"]["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_array_less(1e-4, np.abs(a - b).max()), before, after)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_evaluation_is_a_plain_loops_and_moves_no_statistics(scan):
    found = of_tower(scan, "full", train=False)
    assert_close(found, of_plain_loop(train=False), **CLOSE)
    jax.tree.map(np.testing.assert_array_equal, found["stats"]["batch_stats"], variables()["batch_stats"])


@pytest.mark.parametrize("remat", POLICIES[1:])
@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_recomputing_draws_the_same_random_numbers(scan, remat):
    found, expected = (of_tower(scan, policy, train=True, dropout=0.5) for policy in (remat, "none"))
    assert_close(found, expected, **CLOSE)
    without = of_tower(scan, "none", train=True)
    assert np.abs(found["out"] - without["out"]).max() > 0.1


def test_bfloat16_carries_bfloat16():
    loop, apart = (of_tower(scan, "full", train=True, dtype=jnp.bfloat16) for scan in (True, False))
    assert loop["out"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(loop["stats"])} == {np.dtype(np.float32)}
    # bfloat16 has 8 bits, a few of which the two orders of fusing lose; gradients reach 100.
    float32 = functools.partial(jax.tree.map, lambda a: np.asarray(a, np.float32))
    assert_close(float32(loop["stats"]), float32(apart["stats"]), rtol=0.02, atol=0.02)
    assert_close(float32(loop["out"]), float32(apart["out"]), rtol=0.05, atol=0.05)


class Coin(nn.Module):
    """Adds `value` where a coin falls so."""

    @nn.compact
    def __call__(self, x, value):
        weight = self.param("weight", nn.initializers.normal(), (4,))
        return x + value * jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape) + 0 * weight.sum()


class Coins(nn.Module):
    scan: bool
    remat: str = "none"

    @nn.compact
    def __call__(self, x):
        values, call = (1, 10, 100), lambda layer, x, value: layer(x, value)
        return layer_stack.apply_layers(
            Coin, "coin", range(3), call, x, values, scan=self.scan, remat=self.remat
        )


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_every_layer_draws_its_own_random_numbers_and_initial_weights(scan):
    rngs = dict(params=KEY, dropout=jax.random.key(1))
    out, made = jax.jit(Coins(scan).init_with_output)(rngs, jnp.zeros(64))
    # A layer's coins are one decimal digit of the sum.
    coins = [np.asarray(out).round().astype(int) // 10**i % 10 for i in range(3)]
    weights = unstack_layers(made, {"coin": 0})["params"].values() if scan else made["params"].values()
    weights = [layer["weight"] for layer in weights]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert 10 < (coins[i] != coins[j]).sum() < 54
        assert np.abs(weights[i] - weights[j]).min() > 0


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_initial_weights_do_not_depend_on_the_policy(scan):
    init = [
        jax.jit(Coins(scan, remat).init)(dict(params=KEY, dropout=KEY), jnp.zeros(4)) for remat in POLICIES
    ]
    for other in init[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, init[0])


class Perceptrons(nn.Module):
    """A deep and thin tower: little but activations to keep."""

    depth: int
    scan: bool
    remat: str

    @nn.compact
    def __call__(self, x):
        def call(layer, x, _):
            return x + nn.silu(nn.silu(layer(x)))

        make = functools.partial(nn.Dense, x.shape[-1])
        indices = range(self.depth)
        return layer_stack.apply_layers(
            make, "dense", indices, call, x, scan=self.scan, remat=self.remat
        ).sum()


def lowered(depth, scan, remat):
    x = jax.ShapeDtypeStruct((512, 32), jnp.float32)
    tower = Perceptrons(depth, scan, remat)
    return jax.jit(jax.grad(tower.apply)).lower(jax.eval_shape(tower.init, KEY, x), x)


@functools.cache
def compiled(scan, remat):
    return lowered(16, scan, remat).compile()


def test_recomputing_needs_less_memory_in_a_loop():
    """Unrolled, XLA's CPU compiler drops the barriers, and what is saved is left to its scheduler."""
    none, dots, full = (compiled(True, remat).memory_analysis().temp_size_in_bytes for remat in POLICIES)
    assert full < dots < none
    assert full < 0.5 * none


@pytest.mark.parametrize(("scan", "barriers"), [(False, 4), (True, 0)], ids=["unrolled", "scanned"])
def test_only_unrolled_layers_need_barriers_around_what_is_recomputed(scan, barriers):
    """Without, XLA would merge it with the forward pass; in a loop they would only slow it."""
    none, full = (lowered(4, scan, remat).as_text() for remat in ("none", "full"))
    assert full.count("optimization_barrier") == barriers
    assert none.count("optimization_barrier") == 0
    assert full.count("dot_general") > none.count("dot_general")


def test_a_loops_program_does_not_grow_with_depth():
    shallow, deep = (len(lowered(depth, True, "full").as_text()) for depth in (4, 40))
    assert deep < 1.02 * shallow
    unrolled = [len(lowered(depth, False, "full").as_text()) for depth in (4, 40)]
    assert unrolled[1] > 5 * unrolled[0]


def test_no_layers_are_none():
    x = jnp.ones((2, 3))
    assert Perceptrons(0, True, "full").init(KEY, x) == {}
