"""What the step promises to any objective: its own name, head, metrics, random keys and batch fields."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.data.fields import Image
from big_ssl.models.vit import ViT
from big_ssl.objectives.base import EncoderCall, StatelessObjective, Sum, mean_loss
from big_ssl.training import state as state_lib
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


class Normed(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        return dict(x=nn.BatchNorm(use_running_average=not train)(inputs["text"]["pooled"]))


def test_a_heads_running_statistics_are_state_that_is_averaged_and_evaluated():
    """Also those of a head that two objectives share, and only heads that have any are in the state."""

    class Sharing(Toy):
        shares_head_with = "first"

    heads = dict(first=Normed(), second=Normed(), other=Plain())
    objectives = {
        name: (Sharing if name == "second" else Toy)("example", head) for name, head in heads.items()
    }
    terms = {name: Term("pairs", objective, lambda step: 1.0) for name, objective in objectives.items()}
    system = System({"text": Tower()}, FIELDS, terms)
    params, mutable = system.init(KEY, dict(pairs=batch(0)))
    assert {name for name, state in mutable["heads"].items() if state} == {"first"}
    _, statistics = system.features(params, mutable, dict(pairs=batch(0)), KEY)
    output = dict(text=dict(pooled=jnp.full((8, 6), 2.0)))
    for name in ("first", "second"):
        evaluated = system.head(dict(params=params) | statistics, name, output)["x"]
        state = statistics["heads"]["first"]["batch_stats"]["BatchNorm_0"]
        np.testing.assert_allclose(
            evaluated, (2 - state["mean"]) / np.sqrt(state["var"] + 1e-5) * np.ones((8, 1))
        )
    assert state_lib.averaged(params, mutable)["heads"] is mutable["heads"]


class Plain(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        return dict(x=nn.Dense(2)(inputs["text"]["pooled"]))


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
    variables = dict(params=params) | state_lib.statistics(mutable)

    def features(key):
        return system._apply_head("first", variables, output, key)[0]["x"]

    one, again, other, evaluated = (features(key) for key in (KEY, KEY, jax.random.key(2), None))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0
    assert (one == 0).any()
    assert not (evaluated == 0).any()
    np.testing.assert_array_equal(system.head(variables, "first", output)["x"], evaluated)


def test_calls_that_differ_in_outputs_alone_share_a_run():
    pooled, patches = (EncoderCall("image", "crops", (output,)) for output in ("pooled", "patches"))
    assert pooled.run == patches.run
    assert pooled.run != pooled._replace(masked=True).run


def first_channel(tokens):
    return tokens["patches"][..., 0].mean(-1)


class Layers(nn.Module):
    """The first channel's means of the layers that its call reads: [B, number of layers]."""

    @nn.compact
    def __call__(self, inputs, train=False):
        self.param("scale", nn.initializers.ones, ())
        return dict(means=jnp.stack([first_channel(x) for x in inputs["image"]["layers"]], -1))


@dataclasses.dataclass(frozen=True)
class ReadsLayers(StatelessObjective):
    layers: tuple[int, ...]
    view: str
    head: Layers = dataclasses.field(default_factory=Layers)
    scope: str = "example"

    @property
    def inputs(self):
        return dict(image=EncoderCall("image", self.view, ("layers",), layers=self.layers))


CROPS = dict(kind="random_resized_crop", size=16, scale=(0.5, 1.0), count=2)


def test_calls_of_several_layers_share_a_run_and_get_theirs():
    """Also if two views run together, and if one has several crops."""
    encoder = ViT(patch=8, width=8, depth=3, heads=2, image_size=16)
    one, two = dict(kind="random_crop", resize=16, size=16), CROPS
    pairs = dict(image=Image(one, (0.5,), (0.5,)), crops=Image(two, (0.5,), (0.5,)))
    layers = dict(
        first=ReadsLayers((-1, 0), "image"),
        second=ReadsLayers((1,), "image"),
        third=ReadsLayers((2,), "crops"),
    )
    terms = {name: Term("pairs", objective, lambda step: 1.0) for name, objective in layers.items()}
    system = System({"image": encoder}, dict(pairs=pairs), terms)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 16, 16, 3), np.uint8)
    batches = dict(pairs=dict(image=images, crops=np.stack([images, images[::-1]], 1)))
    assert [call.layers for _, call in system.encoder_calls()] == [(0, 1, 2), (2,)]

    @jax.jit
    def compute():
        params, mutable = system.init(KEY, batches)
        features, _ = system.features(params, mutable, batches, KEY)
        variables = dict(params=params) | state_lib.statistics(mutable)
        outputs = system.encode(variables, layers["first"].inputs["image"], images)
        pixels = pairs["image"].encoder_inputs(images, KEY, False)["images"]
        weights = {"params": params["encoders"]["image"]}
        expected = encoder.apply(weights, pixels, intermediate=(0, 1, 2))["layers"]
        evaluated = encoder.apply(weights, images.astype(np.float32) / 255, intermediate=(2, 0))["layers"]
        return features, first_channel(expected), outputs["layers"], evaluated["patches"]

    features, expected, evaluated, expected_evaluated = jax.tree.map(np.asarray, compute())
    np.testing.assert_allclose(features["first"]["means"], expected[[2, 0]].T, rtol=1e-4)
    np.testing.assert_allclose(features["second"]["means"], expected[[1]].T, rtol=1e-5)
    crops = np.stack([expected[2], expected[2][::-1]], 1)[..., None]
    np.testing.assert_allclose(features["third"]["means"], crops, rtol=1e-5)
    for actual, tokens in zip(evaluated, expected_evaluated, strict=True):
        np.testing.assert_allclose(actual["patches"], tokens, rtol=1e-4, atol=1e-5)


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
