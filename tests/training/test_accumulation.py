"""Microbatches: the whole batch's loss, gradient and statistics, with dropout replayed in the second pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.parallel.mesh import batch_shards, global_batch, make_mesh
from big_ssl.training import batches, build, streams, train_step
from big_ssl.training import state as state_lib
from big_ssl.training.system import System, Term
from tests.training.toys import FIELDS, Tower, Toy, microbatched


def gradients(config, devices, count):
    """((loss, (metrics, mutable)), gradients) of the config's first batch."""
    mesh = make_mesh(config["mesh"], jax.devices()[:devices])
    tokens = build.tokenizer(config)
    system = build.system(config, mesh)
    params, mutable = jax.jit(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))()
    iterator = batches.iterate(config, streams.open_streams(config, tokens), 0, mesh)
    batch = global_batch(mesh, next(iterator))
    iterator.close()
    function = jax.jit(train_step.value_and_grad(system, count, mesh))
    return jax.device_get(function(params, mutable, batch, jax.random.key(1), jnp.int32(0)))


@pytest.fixture(scope="module")
def whole(micro_config):
    return gradients(grouped(micro_config()), 1, 1)


def grouped(config):
    """Batch norm over pairs of neighbours, so that no group is cut by a microbatch."""
    config["encoders"]["image"]["bn_group"] = 2
    return config


@pytest.mark.parametrize(("devices", "count"), [(4, 2), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_microbatches_give_the_whole_batchs_step(micro_config, whole, devices, count):
    found = gradients(grouped(micro_config()), devices, count)
    (loss, (metrics, mutable)), grads = found
    (wanted_loss, (wanted_metrics, wanted_mutable)), wanted_grads = whole
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)

    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted_grads))

    def close(a, b):
        # The second part is rounding, for gradients that are zero on paper: a bias before a batch norm.
        atol = 1e-5 * np.abs(b).max() + 1e-6 * largest
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)

    jax.tree.map(close, grads, wanted_grads)
    # Once, not once a microbatch: the running statistics have moved as far as in one step.
    jax.tree.map(close, mutable, wanted_mutable)


TOYS = dict(coupled=Toy("batch"), separate=Toy("example"))
WEIGHTS = dict(coupled=0.5, separate=2.0)


def toy_system(names):
    terms = {name: Term("pairs", TOYS[name], lambda step, name=name: WEIGHTS[name]) for name in names}
    return System({"text": Tower()}, FIELDS, terms)


@pytest.mark.parametrize("names", [("coupled",), ("separate",), ("coupled", "separate")])
def test_the_two_passes_are_one_function_with_its_gradient(names):
    """Against plain autodiff of the same microbatches, all of their activations kept."""
    system, count, mesh = toy_system(names), 4, make_mesh(dict(data=2, fsdp=1, tensor=1), jax.devices()[:2])
    rng = np.random.default_rng(0)
    text = dict(ids=rng.integers(0, 5, (16, 3)), mask=rng.random((16, 3)) < 0.6)
    batch = dict(pairs=dict(text=text))
    params, mutable = system.init(jax.random.key(0), batch)
    key, step, shards = jax.random.key(3), jnp.int32(2), batch_shards(mesh)

    plain = functools.partial(
        microbatched(system, count, shards), mutable=mutable, batch=batch, key=key, step=step
    )
    (wanted, state), wanted_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    function = jax.jit(train_step.value_and_grad(system, count, mesh))
    (loss, (metrics, after)), grads = function(params, mutable, global_batch(mesh, batch), key, step)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)

    def close(a, b):  # to 1e-5 of a leaf's largest entry: small entries are sums of large ones
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

    jax.tree.map(close, grads, wanted_grads)
    assert set(state["heads"]) == set(names)
    statistics = state_lib.statistics(after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), statistics, state)
    assert set(after["objectives"]) == set(names)
    for name in names:
        np.testing.assert_allclose(after["objectives"][name]["center"], metrics[f"{name}/mean"], rtol=1e-5)
        np.testing.assert_allclose(metrics[f"{name}/loss"] * WEIGHTS[name], metrics[f"{name}/weighted_loss"])


def test_a_batch_that_cannot_be_split_is_named(micro_config, set_up):
    from big_ssl.training.requirements import RequirementsError

    config = micro_config() | dict(grad_accum=3)
    with pytest.raises(RequirementsError, match=r"streams\.pairs\.batch_size is 16; .* grad_accum"):
        set_up(config)
