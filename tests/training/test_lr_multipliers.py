"""Multipliers of the learning rate by path: what is frozen, what is slower, and what a step then does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_ssl.data import pipeline
from big_ssl.training import state as state_lib
from big_ssl.training.lr_multipliers import LrMultipliers
from big_ssl.training.system import System, Term
from big_ssl.training.train_step import make_step
from tests.training.toys import FIELDS, Tower, Toy

PARAMS = dict(encoders=dict(image=dict(a=jnp.ones(3), b=jnp.ones(2)), text=dict(a=jnp.ones(4))))
STEPS = dict(kind="steps", values=((0, 0.0), (5, 0.5), (8, 1.0)))


def test_the_first_pattern_found_counts():
    lr_multipliers = LrMultipliers.build((("image/a", 0.1), ("image/", STEPS)), 10)
    for step, later in ((0, 0.0), (4, 0.0), (5, 0.5), (8, 1.0), (9, 1.0)):
        found = lr_multipliers.factors(PARAMS, jnp.int32(step))["encoders"]
        assert (found["image"]["a"], found["image"]["b"]) == (pytest.approx(0.1), later)
        assert found["text"]["a"] == 1.0


def test_only_the_number_zero_freezes():
    lr_multipliers = LrMultipliers.build((("image/a", 0), ("image/", STEPS)), 10)
    assert lr_multipliers.frozen("encoders/image/a")
    assert not lr_multipliers.frozen("encoders/image/b")
    assert not lr_multipliers.frozen("encoders/text/a")


def test_what_is_frozen_has_no_moments_and_no_decay():
    lr_multipliers = LrMultipliers.build((("image/", 0.0),), 10)
    optimizer = lr_multipliers.mask(optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.5)))
    state = optimizer.init(PARAMS)
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (4,)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    assert not np.any(updates["encoders"]["image"]["a"])
    np.testing.assert_allclose(updates["encoders"]["text"]["a"], 0.5)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("imaeg/", 0.1),), "lr_multipliers: 'imaeg/' is found in no path of the parameters"),
        ((("", 0.0),), "lr_multipliers: every parameter is frozen"),
    ],
)
def test_what_can_train_nothing_is_named(rules, message):
    with pytest.raises(ValueError, match=message):
        LrMultipliers.build(rules, 10).check(PARAMS)


def moved(rules):
    """How far three steps move each parameter, the encoders' state before and after, and the last state."""
    lr_multipliers = LrMultipliers.build(rules, 10)
    terms = dict(toy=Term("pairs", Toy("example"), lambda step: 1.0))
    system = System({"text": Tower()}, FIELDS, terms, frozen=lr_multipliers.frozen)
    ids = np.random.default_rng(0).integers(0, 5, (16, 3))
    marks = {name: np.zeros(16, bool) for name in pipeline.data_errors(FIELDS["pairs"])}
    batch = dict(pairs=dict(text=dict(ids=ids, mask=ids >= 0), data_errors=marks))
    params, mutable = system.init(jax.random.key(0), batch)
    optimizer = lr_multipliers.mask(optax.scale_by_adam())
    first = state_lib.create(params, mutable, optimizer, True, lr_multipliers.frozen, dict(pairs=()))
    grad_fn = jax.value_and_grad(system.loss, has_aux=True)
    step = make_step(
        grad_fn, system.project, optimizer, lambda _: 0.01, lr_multipliers.factors, lambda _: 0.5, 0, 100
    )
    state, step = first, jax.jit(step)
    for _ in range(3):
        state, _ = step(state, batch)
    distance = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, first.params)
    return distance, first, state


def test_a_frozen_tower_stays_and_a_slow_head_moves_less():
    """Statistics and average of a frozen tower included; the other parameters move as their factor says."""
    plain, first, state = moved(())
    assert min(jax.tree.leaves(plain)) > 0
    assert state.mutable["encoders"]["text"]["batch_stats"]["mean"] != 0
    locked, first, state = moved((("encoders/text/", 0.0), ("factor$", 0.25)))
    assert max(jax.tree.leaves(locked["encoders"])) == 0
    jax.tree.map(np.testing.assert_array_equal, state.mutable["encoders"], first.mutable["encoders"])
    jax.tree.map(np.testing.assert_array_equal, state.ema["encoders"], first.ema["encoders"])
    # It is its own average, kept once.
    assert "encoders" not in state.ema["params"]
    average = state_lib.evaluation_variables(state)
    assert average["params"]["encoders"] is state.params["encoders"]
    assert average["params"]["heads"] == state.ema["params"]["heads"]
    assert min(jax.tree.leaves(locked["heads"])) > 0
    # Adam's updates, of an entry whose gradient keeps its sign, are nearly the rate itself.
    assert locked["heads"]["toy"]["factor"] == pytest.approx(0.25 * plain["heads"]["toy"]["factor"], rel=0.05)


def test_a_tower_that_is_frozen_in_part_still_trains_the_rest():
    distance, _, state = moved((("bias$", 0.0),))
    assert (
        distance["encoders"]["text"]["Dense_0"]["bias"]
        == 0
        < distance["encoders"]["text"]["Dense_0"]["kernel"]
    )
    assert state.mutable["encoders"]["text"]["batch_stats"]["mean"] != 0
