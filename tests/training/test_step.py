"""One training step: what it updates and counts, and what it leaves alone where the loss is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.random_keys import named_key, step_key
from big_ssl.training import batches, streams, train_step
from big_ssl.training import state as state_lib


@pytest.fixture(scope="module")
def config(micro_config):
    return micro_config()


@pytest.fixture(scope="module")
def setup(config, set_up):
    return set_up(config)


@pytest.fixture(scope="module")
def initial(setup):
    return jax.device_get(setup.init())


@pytest.fixture(scope="module")
def batch(config, setup):
    iterator = batches.iterate(config, streams.open_streams(config, setup.tokenizer), 0, setup.mesh)
    first = next(iterator)
    iterator.close()
    return first


def _step(setup, state, batch):
    state = jax.tree.map(lambda x, a: jax.device_put(np.array(x), a.sharding), state, setup.abstract_state)
    return jax.device_get(setup.step(state, mesh_lib.global_batch(setup.mesh, batch)))


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _differs(a, b):
    return [not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def _with_scale(state, value):
    heads = state.params["heads"]
    contrastive = heads["contrastive"] | dict(logit_scale=np.float32(value))
    return state.replace(params=state.params | dict(heads=heads | dict(contrastive=contrastive)))


@pytest.mark.smoke
def test_a_step_moves_everything_that_should_move(setup, initial, batch):
    state, metrics = _step(setup, _step(setup, initial, batch)[0], batch)
    assert int(state.step) == 2
    # The first learning rate is 0, so it is the second step that moves the parameters.
    assert np.mean(_differs(state.params, initial.params)) > 0.9
    assert all(_differs(state.mutable, initial.mutable))
    assert all(_differs(state.opt_state, initial.opt_state))
    assert all(np.isfinite(v) for v in metrics.values())
    assert metrics["learning_rate"] == pytest.approx(1e-3)


def test_the_average_follows_the_recurrence(setup, initial, batch):
    state, expected = initial, jax.tree.map(np.array, initial.ema)
    for step in range(3):
        state, _ = _step(setup, state, batch)
        momentum = min(0.99, (1 + step) / (10 + step))
        new = dict(params=state.params, encoders=state.mutable["encoders"])
        expected = jax.tree.map(lambda old, new, m=momentum: m * old + (1 - m) * new, expected, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, expected)
    _equal(state_lib.evaluation_variables(state), state.ema)


def test_without_an_average_the_weights_themselves_are_evaluated(initial):
    state = initial.replace(ema=None)
    variables = state_lib.evaluation_variables(state)
    assert variables["params"] is state.params
    assert variables["encoders"] is state.mutable["encoders"]


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_step_that_is_not_finite_changes_only_the_counters(bad, setup, initial, batch):
    state, _ = _step(setup, initial, batch)
    poisoned = _with_scale(state, bad)
    poisoned = poisoned.replace(ema=poisoned.ema | dict(params=poisoned.params))
    after, metrics = _step(setup, poisoned, batch)
    assert not np.isfinite(metrics["loss"])
    apart = dict(step=0, counters=0, replaced_fraction=0)
    _equal(after.replace(**apart), poisoned.replace(**apart))
    assert int(after.step) == 2
    assert after.counters["skipped"] == after.counters["skipped_in_a_row"] == 1
    twice, metrics = _step(setup, after, batch)
    assert twice.counters["skipped"] == twice.counters["skipped_in_a_row"] == 2
    assert metrics["skipped"] == 2
    healed, metrics = _step(setup, _with_scale(twice, 2.0), batch)
    assert np.isfinite(metrics["loss"])
    assert (healed.counters["skipped"], healed.counters["skipped_in_a_row"]) == (2, 0)


def test_a_good_step_after_a_bad_one_is_the_one_it_would_have_been(setup, initial, batch):
    # Only the step differs, and with it learning rate and random keys: give both the same.
    once, _ = _step(setup, initial, batch)
    scale = once.params["heads"]["contrastive"]["logit_scale"]
    skipped, _ = _step(setup, _with_scale(once, np.inf), batch)
    resumed = _with_scale(skipped, scale).replace(ema=once.ema, step=once.step, counters=once.counters)
    _equal(_step(setup, resumed, batch)[0], _step(setup, once, batch)[0])


def _with_errors(batch, images=0, texts=0, missing=0):
    """The batch of 16 with so many examples of each kind marked, from the first on."""
    marks = dict(replaced_images=images, replaced_texts=texts, missing_examples=missing)
    data_errors = {name: np.arange(16) < count for name, count in marks.items()}
    return dict(pairs=batch["pairs"] | dict(data_errors=data_errors))


@pytest.mark.slow
def test_replaced_records_are_counted(setup, initial, batch):
    spoiled = _with_errors(batch, images=3, texts=5)
    state, metrics = _step(setup, initial, spoiled)
    state, metrics = _step(setup, state, spoiled)
    assert (state.counters["replaced_images"], state.counters["replaced_texts"]) == (6, 10)
    assert (metrics["replaced_images"], metrics["skipped"]) == (6, 0)


def test_the_replaced_fraction_is_the_mean_at_first_and_then_of_a_window(setup, config, initial, batch):
    state, metrics = _step(setup, initial, _with_errors(batch, images=4, texts=2))
    assert metrics["replaced_fraction/pairs"] == pytest.approx(4 / 16)  # an example counts once
    state, metrics = _step(setup, state, batch)
    assert metrics["replaced_fraction/pairs"] == pytest.approx(2 / 16)
    # A million steps on, the window counts and not all that was before.
    weight = 16 / config["failure_limits"]["window_examples"]
    late = state.replace(step=np.int32(10**6), replaced_fraction=dict(pairs=np.float32(0)))
    for count in (1, 2):
        late, metrics = _step(setup, late, _with_errors(batch, images=16))
        assert metrics["replaced_fraction/pairs"] == pytest.approx(1 - (1 - weight) ** count, rel=1e-3)
    assert late.replaced_fraction["pairs"] == metrics["replaced_fraction/pairs"]


def _toy(names, first=0):
    """(step, state) with a head of two parameters for each name, and the stream "a"."""
    optimizer = optax.sgd(1.0)
    params = dict(encoders={}, heads={name: dict(kernel=jnp.ones(2)) for name in names})
    mutable = dict(encoders={}, objectives={})
    state = state_lib.create(params, mutable, optimizer, False, counters=dict(a=("replaced_images",)))

    def grad_fn(params, mutable, *_):
        return (jnp.zeros(()), ({}, mutable)), params

    def factors(updates, step):
        return jax.tree.map(lambda _: 1.0, updates)

    step = train_step.make_step(
        grad_fn, lambda x: x, optimizer, lambda step: 0.1, factors, None, seed=0, window=1000, first=first
    )
    return step, state


def _toy_batch(replaced):
    marks = dict(replaced_images=np.arange(8) < replaced, missing_examples=np.zeros(8, bool))
    return dict(a=dict(data_errors=marks))


def test_a_stages_first_batch_does_not_outweigh_all_replaced_records_before():
    step, state = _toy("a", first=100)
    state = state.replace(step=jnp.int32(100), replaced_fraction=dict(a=jnp.float32(0.01)))
    _, metrics = step(state, _toy_batch(replaced=4))
    assert metrics["replaced_fraction/a"] == pytest.approx(0.01 + (0.5 - 0.01) / 101, rel=1e-5)


def test_the_check_of_all_arrays_is_compiled_once_and_not_for_each_array():
    """Otherwise the compilation takes a time that grows with the square of the number of arrays."""
    step, state = _toy([f"head{i}" for i in range(30)])
    state = state.replace(mutable=state.mutable | dict(objectives={f"o{i}": jnp.ones(3) for i in range(30)}))
    compiled = jax.jit(step).lower(state, _toy_batch(replaced=0)).compile().as_text()
    assert 0 < compiled.count(" and(") < 100


def test_a_step_with_a_missing_example_changes_no_weights(setup, initial, batch):
    state, _ = _step(setup, initial, batch)
    after, metrics = _step(setup, state, _with_errors(batch, missing=1))
    assert metrics["missing_examples"] == 1
    apart = dict(step=0, counters=0, replaced_fraction=0)
    _equal(after.replace(**apart), state.replace(**apart))


def test_the_norms_are_those_of_what_changes(setup, initial, batch):
    state, _ = _step(setup, initial, batch)
    after, metrics = _step(setup, state, batch)

    def norm(tree):
        return np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree)))

    assert metrics["param_norm"] == pytest.approx(norm(after.params), rel=1e-5)
    change = jax.tree.map(lambda a, b: np.float64(a) - b, after.params, state.params)
    # The difference of rounded weights is not quite the update.
    assert metrics["update_norm"] == pytest.approx(norm(change), rel=1e-3)


def _spoiled(state, part, where, value):
    """state with `value` in the last row of those leaves of a part whose path holds `where`."""

    def spoil(path, leaf):
        leaf = np.array(leaf)
        if where in jax.tree_util.keystr(path):
            leaf[-1:] = value
        return leaf

    return state.replace(**{part: jax.tree_util.tree_map_with_path(spoil, getattr(state, part))})


@pytest.mark.parametrize(
    ("part", "where", "value"),
    [
        ("params", "token_type", 3e38),  # which no text reads; finite, and their norm is not
        ("opt_state", ".nu['encoders']['text']['token_type']", np.inf),  # of which the update is 0
        ("mutable", "stem_bn']['var", np.inf),  # which training does not read
    ],
)
def test_nothing_that_is_not_finite_becomes_state(part, where, value, setup, initial, batch):
    """The loss and its gradient are finite, and what the step would store is not."""
    state, _ = _step(setup, initial, batch)
    spoiled = _spoiled(state, part, where, value)
    assert any(_differs(getattr(spoiled, part), getattr(state, part)))
    after, metrics = _step(setup, spoiled, batch)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert after.counters["skipped"] == 1
    apart = dict(step=0, counters=0, replaced_fraction=0)
    _equal(after.replace(**apart), spoiled.replace(**apart))


def test_the_temperature_is_kept_above_a_hundredth(setup, initial, batch):
    # Just past the cap, so that no step of a learning rate of 1e-3 can lead back over it.
    state, _ = _step(setup, _with_scale(initial, np.log(100) + 0.1), batch)
    assert state.params["heads"]["contrastive"]["logit_scale"] == pytest.approx(np.log(100))
    _, metrics = _step(setup, state, batch)
    assert metrics["contrastive/temperature"] == pytest.approx(0.01, rel=1e-5)


def test_the_state_is_donated(setup, batch):
    state = setup.init()
    leaf = state.params["encoders"]["text"]["word"]["embedding"]
    setup.step(state, mesh_lib.global_batch(setup.mesh, batch))
    assert leaf.is_deleted()


def test_random_keys_differ_by_name_and_step_and_seed():
    def bits(key):
        return tuple(jax.random.key_data(key).tolist())

    keys = [step_key(seed, step) for seed in (0, 1) for step in range(10)]
    named = [named_key(key, name) for key in keys for name in ("image", "text", "pairs/image")]
    assert len({bits(key) for key in keys + named}) == len(keys) + len(named)
    # The same for the same name in another process: Python's own hash is salted, CRC-32 is not.
    expected = jax.random.fold_in(jax.random.key(0), jnp.uint32(3309110367))
    assert bits(named_key(jax.random.key(0), "image")) == bits(expected)


class _Marks:
    """Records when it is summed."""

    def __init__(self, name, summed):
        self._name, self._summed = name, summed

    def sum(self, dtype):
        self._summed.append(self._name)
        return np.zeros((), dtype)


def test_counters_are_traced_in_an_order_that_all_hosts_have():
    """An order of a set differs between processes, which then compile different programs."""
    names, summed = [f"replaced_{i}" for i in range(12)], []
    counters = dict.fromkeys(["skipped", "skipped_in_a_row", *names], np.int32(0))
    batch = dict(pairs=dict(data_errors={name: _Marks(name, summed) for name in names}))
    train_step._count(counters, jnp.asarray(True), batch)
    assert summed == names
