"""Batch norm against the paper's equations in float64, and on several devices against one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models.batch_norm import BatchNorm, normalize
from big_ssl.parallel.mesh import global_batch, make_mesh

EPSILON = 1e-3
CHANNELS, BATCH, SIZE = 3, 8, (4, 5)
CLOSE = dict(rtol=1e-5, atol=1e-5)


def draw(*shape, seed=0):
    """Activations whose mean is far from zero and differs by channel."""
    rng = np.random.default_rng(seed)
    offset = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    return (rng.normal(size=shape) * 1.5 + 2 - offset).astype(np.float32)


def variables(seed=1):
    rng = np.random.default_rng(seed)
    params = dict(scale=rng.normal(size=CHANNELS), bias=rng.normal(size=CHANNELS))
    stats = dict(mean=rng.normal(size=CHANNELS), var=rng.uniform(0.5, 2, CHANNELS))
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), dict(params=params, batch_stats=stats))


def plain(x, scale, bias):
    """Equations of Algorithm 1 for [C, G, ...], each (channel, group) by itself."""
    axes = tuple(range(2, x.ndim))
    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    shape = (-1, *(1,) * (x.ndim - 1))
    y = scale.reshape(shape) * (x - mean) / jnp.sqrt(var + EPSILON) + bias.reshape(shape)
    return y, (mean.reshape(x.shape[:2]), var.reshape(x.shape[:2]))


def pull(function, x, scale, bias):
    """Value and gradients of y's product with a fixed random array."""

    @jax.jit
    def run(*args):
        (y, stats), pullback = jax.vjp(function, *args)
        weights = np.random.default_rng(7).normal(size=x.shape).astype(y.dtype)
        return y, stats, pullback((weights, jax.tree.map(jnp.zeros_like, stats)))

    return run(x, scale, bias)


@pytest.mark.parametrize("groups", [1, 4])
def test_normalize_agrees_with_the_equations_in_float64(groups):
    x, params = draw(CHANNELS, groups, BATCH // groups, *SIZE), variables()["params"]
    found = pull(lambda x, s, b: normalize(x, s, b, EPSILON), x, params["scale"], params["bias"])
    with jax.enable_x64(True):
        args = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, params["scale"], params["bias"]))
        expected = jax.tree.map(np.asarray, pull(plain, *args))
    assert expected[0].dtype == np.float64
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, expected)


def test_no_gradient_flows_through_the_statistics():
    x, params = draw(CHANNELS, 1, BATCH, *SIZE), variables()["params"]
    grad = jax.grad(lambda x: sum(s.sum() for s in normalize(x, *params.values(), EPSILON)[1]))(x)
    assert not grad.any()


def test_a_constant_channel_gives_the_bias_and_finite_gradients():
    x = jnp.full((1, 1, BATCH, *SIZE), 3.1)
    y, pullback = jax.vjp(lambda x: normalize(x, jnp.ones(1), jnp.full(1, 0.5), EPSILON)[0], x)
    np.testing.assert_allclose(y, 0.5, atol=1e-3)
    assert np.isfinite(pullback(jnp.ones_like(y))[0]).all()


@functools.partial(jax.jit, static_argnums=0)
def train(module, variables, x):
    return module.apply(variables, x, True, mutable=["batch_stats"])


def test_a_group_is_normalised_by_itself():
    x, state = draw(CHANNELS, BATCH, *SIZE), variables()
    y, _ = train(BatchNorm(bn_group=2), state, x)
    for i in range(0, BATCH, 2):
        alone, _ = train(BatchNorm(), state, x[:, i : i + 2])
        np.testing.assert_allclose(y[:, i : i + 2], alone, **CLOSE)


def test_gradients_of_groups_are_those_of_separate_batches():
    x, state = draw(CHANNELS, BATCH, *SIZE), variables()
    weights = draw(CHANNELS, BATCH, *SIZE, seed=5)

    def gradient(bn_group, rows):
        def loss(params, x):
            y, _ = train(BatchNorm(bn_group), state | dict(params=params), x)
            return (y * weights[:, rows]).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(state["params"], x[:, rows])

    params, d_x = gradient(4, slice(None))
    halves = [gradient(0, rows) for rows in (slice(0, 4), slice(4, 8))]
    np.testing.assert_allclose(d_x, np.concatenate([h[1] for h in halves], axis=1), **CLOSE)
    for name, value in params.items():
        np.testing.assert_allclose(value, sum(h[0][name] for h in halves), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("group", [0, 2])
def test_running_statistics_move_by_one_minus_momentum_to_the_groups_average(group):
    x, state = draw(CHANNELS, BATCH, *SIZE), variables()
    _, new = train(BatchNorm(group, momentum=0.9), state, x)
    groups = x.astype(np.float64).reshape(CHANNELS, -1, (group or BATCH) * np.prod(SIZE))
    old = state["batch_stats"]
    for name, batch in dict(mean=groups.mean(2).mean(1), var=groups.var(2, ddof=0).mean(1)).items():
        np.testing.assert_allclose(new["batch_stats"][name], 0.9 * old[name] + 0.1 * batch, **CLOSE)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    x, state = draw(CHANNELS, BATCH, *SIZE), variables()
    y, new = BatchNorm().apply(state, x, False, mutable=["batch_stats"])
    scale, bias = (np.asarray(state["params"][k], float)[:, None, None, None] for k in ("scale", "bias"))
    mean, var = (np.asarray(state["batch_stats"][k], float)[:, None, None, None] for k in ("mean", "var"))
    np.testing.assert_allclose(y, scale * (x - mean) / np.sqrt(var + EPSILON) + bias, **CLOSE)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], state["batch_stats"])


def test_initialising_leaves_mean_zero_and_variance_one():
    stats = BatchNorm().init(jax.random.key(0), draw(CHANNELS, BATCH, *SIZE), True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(CHANNELS))
    np.testing.assert_array_equal(stats["var"], np.ones(CHANNELS))


def test_a_bn_group_that_does_not_divide_the_batch_is_named():
    with pytest.raises(ValueError, match="bn_group 3 does not divide the batch of 8"):
        train(BatchNorm(bn_group=3), variables(), draw(CHANNELS, BATCH, *SIZE))


def test_bfloat16_activations_have_float32_statistics():
    x = jnp.asarray(draw(CHANNELS, 64, 8, 8) + 10, jnp.bfloat16)
    y, new = train(BatchNorm(momentum=0.0), variables(), x)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).reshape(CHANNELS, -1)
    stats = new["batch_stats"]
    assert {s.dtype for s in stats.values()} == {np.dtype(np.float32)}
    # 1e-4 is 40 times finer than bfloat16; the mean's square takes two digits off the variance.
    np.testing.assert_allclose(stats["mean"], exact.mean(1), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], exact.var(1), rtol=1e-4)
    _, pullback = jax.eval_shape(lambda x: jax.vjp(lambda x: train(BatchNorm(), variables(), x)[0], x), x)
    assert jax.eval_shape(pullback, y)[0].dtype == jnp.bfloat16
    assert BatchNorm().apply(variables(), x, False).dtype == jnp.bfloat16


def on_devices(n, group):
    """Output, new statistics and gradients of a batch of 16 split over n devices."""
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:n])
    state = variables()
    batch = global_batch(mesh, draw(16, *SIZE, CHANNELS))
    weights = draw(16, *SIZE, CHANNELS, seed=3)
    assert len(batch.sharding.device_set) == n

    @jax.jit
    def run(params, batch):
        def loss(params, batch):
            x = batch.transpose(3, 0, 1, 2)
            y, new = train(BatchNorm(group), state | dict(params=params), x)
            y = y.transpose(1, 2, 3, 0)
            return (y * weights).mean(), (y, new)

        return jax.grad(loss, (0, 1), has_aux=True)(params, batch)

    return jax.tree.map(np.asarray, run(state["params"], batch))


@pytest.mark.parametrize("group", [0, 2, 8])
def test_devices_do_not_change_the_result(group):
    one = on_devices(1, group)
    for n in (2, 4, 8):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), on_devices(n, group), one)
