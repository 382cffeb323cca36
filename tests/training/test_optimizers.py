"""AdamW, LAMB and SGD against their papers' algorithms in float64 over several steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.parallel.sharding import path_name
from big_ssl.training import optimizers

STEPS, RATE = 4, 0.1
BASE = dict(
    name="adamw",
    b1=0.8,
    b2=0.95,
    eps=1e-3,  # large, so that its position in the formula matters
    weight_decay=0.3,
    weight_decay_exclude=("bias$", "_bn/"),
    trust_ratio_exclude=("_bn/",),
    clip_norm=0.0,
    clip_scope="all",
)
SHAPES = {
    "image/dense/kernel": (3, 4),
    "image/dense/bias": (4,),
    "image/stem_bn/scale": (4,),
    "heads/zero": (2, 2),  # starts at norm zero
    "heads/temperature": (),
}


def nested(flat):
    """{"a/b": x} -> {"a": {"b": x}}, as flax keeps parameters."""
    tree = {}
    for path, value in flat.items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(value) for path, value in leaves}


def draws():
    """Initial parameters and each step's gradients, of very different magnitudes."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    params["heads/zero"] = np.zeros((2, 2))
    grads = [{n: rng.normal(size=s) * 10.0**k for n, s in SHAPES.items()} for k in (0, -2, 1, -3)]
    return params, grads


def ours(config, params, grads):
    """The parameters after each step p -= RATE * update."""
    optimizer, history = optimizers.build(config), []
    params = nested({name: jnp.float32(value) for name, value in params.items()})
    state = optimizer.init(params)

    @jax.jit
    def step(grad, state, params):
        updates, state = optimizer.update(grad, state, params)
        return jax.tree.map(lambda p, u: p - RATE * u, params, updates), state

    for grad in grads:
        params, state = step(nested({n: jnp.float32(g) for n, g in grad.items()}), state, params)
        history.append(flat(params))
    return history


def reference(config, params, grads):
    """Algorithm 2 of arXiv 1711.05101 and of arXiv 1904.00962, phi the identity."""
    decayed, adapted = ({"image/dense/kernel", "heads/zero", "heads/temperature"}, set())
    if config["name"] == "lamb":
        adapted = set(params) - {"image/stem_bn/scale"}
    params = dict(params)
    m, v = ({n: np.zeros_like(p) for n, p in params.items()} for _ in range(2))
    history = []
    for t, grad in enumerate(grads, start=1):
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        clip = min(1, config["clip_norm"] / norm) if config["clip_norm"] else 1
        for n, g in grad.items():
            m[n] = config["b1"] * m[n] + (1 - config["b1"]) * clip * g
            v[n] = config["b2"] * v[n] + (1 - config["b2"]) * (clip * g) ** 2
            m_hat, v_hat = m[n] / (1 - config["b1"] ** t), v[n] / (1 - config["b2"] ** t)
            update = m_hat / (np.sqrt(v_hat) + config["eps"])
            update = update + config["weight_decay"] * params[n] * (n in decayed)
            size, length = np.sqrt((params[n] ** 2).sum()), np.sqrt((update**2).sum())
            if n in adapted and size > 0 and length > 0:
                update = update * size / length
            params[n] = params[n] - RATE * update
        history.append(dict(params))
    return history


@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_several_steps_equal_the_algorithm(name, clip_norm):
    config = BASE | dict(name=name, clip_norm=clip_norm)
    params, grads = draws()
    for step, (actual, expected) in enumerate(
        zip(ours(config, params, grads), reference(config, params, grads), strict=True)
    ):
        assert set(actual) == set(expected)
        for path, value in expected.items():
            np.testing.assert_allclose(
                actual[path], value, rtol=2e-5, atol=1e-6, err_msg=f"{path} after step {step}"
            )


@functools.cache
def first_update(**options):
    params, grads = draws()
    return {n: (params[n] - p) / RATE for n, p in ours(BASE | options, params, grads[:1])[0].items()}


def test_updates_ascend():
    """The train step subtracts the update, so the optimiser does not flip its sign."""
    grads = draws()[1][0]
    update = first_update(weight_decay=0.0)
    for name, grad in grads.items():
        np.testing.assert_allclose(update[name], grad / (np.abs(grad) + BASE["eps"]), rtol=1e-4, atol=1e-5)


def test_a_parameter_of_norm_zero_has_trust_ratio_one():
    actual, plain = (first_update(name=name)["heads/zero"] for name in ("lamb", "adamw"))
    np.testing.assert_allclose(actual, plain, rtol=1e-5)
    assert np.abs(actual).min() > 0.5


def test_lambs_update_has_the_parameters_norm_unless_excluded():
    params, _ = draws()
    update = first_update(name="lamb")
    for name in ("image/dense/kernel", "image/dense/bias", "heads/temperature"):
        np.testing.assert_allclose(np.linalg.norm(update[name]), np.linalg.norm(params[name]), rtol=1e-4)
    bn = "image/stem_bn/scale"
    np.testing.assert_allclose(update[bn], first_update(name="adamw")[bn], rtol=1e-5)


def test_weight_decay_is_decoupled_and_has_exclusions():
    """Decoupled: it adds weight_decay * parameter, independent of the gradient."""
    params, _ = draws()
    with_decay, without = first_update(), first_update(weight_decay=0.0)
    for name, value in params.items():
        rate = 0.0 if name in ("image/dense/bias", "image/stem_bn/scale") else 0.3
        added = rate * value
        np.testing.assert_allclose(with_decay[name] - without[name], added, rtol=1e-4, atol=1e-5)


def test_clipping_by_the_global_norm():
    params, (_, small, large, _) = draws()
    norm = np.sqrt(sum((g**2).sum() for g in large.values()))
    clipped = {name: g * 2 / norm for name, g in large.items()}
    actual, expected = (
        ours(BASE | dict(clip_norm=c), params, [g]) for c, g in ((2.0, large), (0.0, clipped))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)
    actual, expected = (ours(BASE | dict(clip_norm=c), params, [small]) for c in (2.0, 0.0))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_stacked_layers_are_updated_like_unstacked_ones(name):
    """Including one that starts at zero, with a zero norm."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** np.arange(-2, 2)[:, None, None] * np.array([1, 1, 0, 1])[:, None, None]
    stack = rng.normal(size=(4, 2, 3)) * sizes
    gradients = rng.normal(size=(3, 4, 2, 3))

    def layers(values):
        return {f"text/layer{i}/kernel": value for i, value in enumerate(values)}

    config = BASE | dict(name=name)
    path = "text/layer_stack/kernel"
    actual = ours(config, {path: stack}, [{path: grad} for grad in gradients])
    expected = ours(config, layers(stack), [layers(grad) for grad in gradients])
    for step, values in zip(actual, expected, strict=True):
        np.testing.assert_allclose(step[path], list(values.values()), rtol=1e-5, atol=1e-7)


def test_exclude_searches_any_pattern_anywhere_in_the_path():
    params = nested(dict.fromkeys(SHAPES, 0.0))
    assert flat(optimizers.exclude(("bias", "_bn/", "^heads/t"))(params)) == {
        "image/dense/kernel": True,
        "image/dense/bias": False,
        "image/stem_bn/scale": False,
        "heads/zero": True,
        "heads/temperature": False,
    }
    assert all(flat(optimizers.exclude(())(params)).values())


def test_the_error_names_an_unknown_optimizer():
    with pytest.raises(ValueError, match=r"optimizer\.name is 'adagrad'; use adamw, lamb, sgd"):
        optimizers.build(BASE | dict(name="adagrad"))


@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
def test_sgd_equals_algorithm_1_of_decoupled_weight_decay(clip_norm):
    """Of arXiv 1711.05101, in the form of PyTorch: m = b1 m + g; p -= rate (m + decay p)."""
    params, grads = draws()
    actual = ours(BASE | dict(name="sgd", clip_norm=clip_norm), params, grads)
    decayed = {"image/dense/kernel", "heads/zero", "heads/temperature"}
    m = {n: np.zeros_like(p) for n, p in params.items()}
    for step, grad in enumerate(grads):
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        clip = min(1, clip_norm / norm) if clip_norm else 1
        for n, g in grad.items():
            m[n] = BASE["b1"] * m[n] + clip * g
            params[n] = params[n] - RATE * (m[n] + BASE["weight_decay"] * params[n] * (n in decayed))
            np.testing.assert_allclose(actual[step][n], params[n], rtol=2e-5, atol=1e-5, err_msg=n)


def _clipped(clip_scope, limit, grads):
    """The gradients after clipping only."""
    transform = optimizers.CLIPS[clip_scope](limit)
    return flat(transform.update(nested(grads), transform.init(nested(grads)), None)[0])


def test_each_parameter_or_each_part_is_clipped_by_its_own_norm():
    """iBOT's and DINOv2's clipping against float64; small norms are unchanged."""
    rng = np.random.default_rng(0)
    shapes = {
        "encoders/image/a": (3, 4),
        "encoders/image/b": (5,),
        "encoders/text/a": (2,),
        "heads/x/a": (4,),
    }
    grads = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    grads["heads/x/a"] *= 0.01

    def shrunk(names):
        norm = np.sqrt(sum((grads[name] ** 2).sum() for name in names))
        return {name: grads[name] * min(1, 0.5 / norm) for name in names}

    parts = (("encoders/image/a", "encoders/image/b"), ("encoders/text/a",), ("heads/x/a",))
    for clip_scope, groups in (("parameter", [(name,) for name in grads]), ("part", parts)):
        actual = _clipped(clip_scope, 0.5, grads)
        for names in groups:
            for name, expected in shrunk(names).items():
                np.testing.assert_allclose(actual[name], expected, rtol=1e-4, err_msg=clip_scope)


def test_each_layer_of_a_stack_is_clipped_by_its_own_norm():
    stack = np.random.default_rng(0).normal(size=(3, 4, 5)) * np.array([1, 10, 0.01])[:, None, None]
    stack = stack.astype(np.float32)
    actual = _clipped("parameter", 0.5, {"image/layer_stack/kernel": stack})["image/layer_stack/kernel"]
    apart = [_clipped("parameter", 0.5, {"a/b": layer})["a/b"] for layer in stack]
    np.testing.assert_allclose(actual, apart, rtol=1e-6)


def test_weight_decay_follows_the_runs_step():
    config = BASE | dict(weight_decay=dict(a=0.1))
    optimizer = optimizers.build(config, lambda value: lambda step: value["a"] * step)
    params = nested({"a/kernel": np.ones(3)})
    zeros, state = jax.tree.map(np.zeros_like, params), optimizer.init(params)
    for step in (5, 2, 2):
        update, state = optimizer.update(zeros, state, params, step=step)
        np.testing.assert_allclose(update["a"]["kernel"], 0.1 * step, rtol=1e-6)
