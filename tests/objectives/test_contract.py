"""What the step promises to any objective: its own name, head, metrics, random keys and batch fields."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.objectives.base import EncoderCall, Sum, mean_loss
from big_ssl.training.system import System, Term
from tests.training.toys import FIELDS, Tower, Toy

KEY = jax.random.key(1)


def batch(seed):
    rng = np.random.default_rng(seed)
    return dict(text=dict(ids=rng.integers(0, 5, (8, 3)), mask=rng.random((8, 3)) < 0.6))


@pytest.fixture(scope="module")
def two():
    """One kind of objective on two streams: (system, params, mutable, batch)."""
    names = dict(first="pairs", second="more")
    terms = {name: Term(stream, Toy("example"), lambda step: 0.5) for name, stream in names.items()}
    system = System({"text": Tower()}, dict.fromkeys(names.values(), FIELDS["pairs"]), terms)
    batches = dict(pairs=batch(0), more=batch(1))
    return system, *system.init(jax.random.key(0), batches), batches


def test_a_kind_is_used_twice_with_heads_and_states_of_their_own(two):
    _, params, mutable, _ = two
    assert set(params["heads"]) == set(mutable["objectives"]) == {"first", "second"}
    kernels = [params["heads"][name]["Dense_0"]["kernel"] for name in ("first", "second")]
    assert np.abs(np.subtract(*kernels)).max() > 0


def test_a_head_that_keeps_more_than_parameters_is_named():
    """Its batch norm's statistics would be lost, and evaluation would fail."""

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            return nn.BatchNorm(use_running_average=not train)(inputs["text"]["pooled"])

    terms = dict(itc=Term("pairs", Toy("example", Normed()), lambda step: 1.0))
    system = System({"text": Tower()}, FIELDS, terms)
    message = "^the head of 'itc' keeps batch_stats, and a head may keep parameters alone: "
    with pytest.raises(ValueError, match=message):
        system.init(jax.random.key(0), dict(pairs=batch(0)))


def test_losses_and_metrics_of_one_kind_stand_side_by_side(two):
    system, params, mutable, batches = two
    total, (metrics, after) = system.loss(params, mutable, batches, KEY, jnp.int32(0))
    metric_names = ("loss", "weighted_loss", "mean", "weighted")
    assert set(metrics) == {f"{name}/{metric}" for name in ("first", "second") for metric in metric_names}
    assert metrics["first/loss"] != metrics["second/loss"]
    np.testing.assert_allclose(total, metrics["first/weighted_loss"] + metrics["second/weighted_loss"])
    assert after["objectives"]["first"] != after["objectives"]["second"]


def test_a_head_has_random_keys_in_training_and_none_in_evaluation(two):
    system, params, mutable, batches = two
    output = dict(text=dict(pooled=jnp.ones((8, 6))), tokens=batches["pairs"]["text"])

    def features(key):
        return system._apply_head("first", params, output, key)["x"]

    one, again, other, evaluated = (features(key) for key in (KEY, KEY, jax.random.key(2), None))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0
    assert (one == 0).any()
    assert not (evaluated == 0).any()
    variables = dict(params=params, encoders=mutable["encoders"])
    np.testing.assert_array_equal(system.head(variables, "first", output)["x"], evaluated)


def test_calls_that_differ_in_outputs_alone_share_a_run():
    pooled, patches = (EncoderCall("image", "crops", (output,)) for output in ("pooled", "patches"))
    assert pooled.run == patches.run
    assert pooled.run != pooled._replace(masked=True).run


def test_a_sum_has_a_mean_without_gradient_to_its_count():
    grads = jax.grad(lambda value, count: Sum(value, count).mean, (0, 1))(6.0, 3.0)
    assert (float(Sum(6.0, 3.0).mean), *map(float, grads)) == (2.0, pytest.approx(1 / 3), 0.0)
    assert Sum.of_mean(2.0, 3).value == 6.0


def test_a_count_of_zero_divides_by_one():
    assert float(Sum(jnp.float32(6.0), jnp.float32(0.0)).mean) == 6.0
    assert float(Sum(0.0, 0).mean) == 0.0


def test_a_loss_of_several_means_is_their_sum():
    grads = jax.grad(lambda x: mean_loss((Sum(x, 3.0), Sum(2 * x, 4.0))))(12.0)
    assert float(mean_loss((Sum(12.0, 3.0), Sum(24.0, 4.0)))) == 10.0
    assert float(grads) == pytest.approx(1 / 3 + 1 / 2)
    assert float(mean_loss(Sum(12.0, 3.0))) == 4.0
