"""The contrastive objective's head: temperature in both forms, projections, and one tower alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from big_ssl.objectives import build
from big_ssl.objectives.base import BatchField, Context, EncoderCall

B, WIDTH, DIM = 4, 5, 3


def towers(image_width=DIM):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(B, image_width)), rng.normal(size=(B, WIDTH))
    return {tower: dict(pooled=jnp.float32(x)) for tower, x in (("image", image), ("text", text))}


def make(**options):
    return build.build(
        dict(kind="contrastive", weight=1.0, embed_dim=DIM) | options, Context(None, "float32", None, {})
    )


def init(objective, outputs):
    return jax.jit(objective.head.init)(jax.random.key(0), outputs)["params"]


@pytest.mark.parametrize(("form", "name"), [("raw", "temperature"), ("log", "logit_scale")])
def test_both_forms_start_at_the_temperature_asked_for(form, name):
    objective = make(temperature=0.07, temperature_form=form)
    params = init(objective, towers())
    assert params[name].shape == ()
    features = objective.head.apply(dict(params=params), towers())
    np.testing.assert_allclose(features["temperature"], 0.07, rtol=1e-6)


@pytest.mark.parametrize(("std", "expected"), [(None, WIDTH**-0.5), (0.02, 0.02)])
def test_projections_start_with_their_deviation(std, expected):
    objective = make(embed_dim=4096, projection_std=std)
    kernel = init(objective, dict(text=towers()["text"]))["text_projection"]["kernel"]
    assert kernel.shape == (WIDTH, 4096)
    assert float(kernel.std()) == pytest.approx(expected, rel=0.02)


def test_an_unknown_temperature_form_is_named():
    with pytest.raises(ValueError, match="'logarithm'"):
        init(make(temperature_form="logarithm"), towers())


def test_a_unit_of_the_log_form_divides_the_temperature_by_e():
    objective = make(temperature=0.5, temperature_form="log")
    params = init(objective, towers())
    params["logit_scale"] += 1
    features = objective.head.apply(dict(params=params), towers())
    np.testing.assert_allclose(features["temperature"], 0.5 / math.e, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def gradient(objective, params):
    def loss(params):
        features = objective.head.apply(dict(params=params), towers())
        return objective.loss(features, {}, {}, 0)[0].mean

    return jax.grad(loss)(params)


def test_the_two_forms_gradients_differ_by_the_chain_rule():
    """With temperature = exp(-s), the derivative by s is -temperature times that by temperature."""
    grads = {}
    for form in ("raw", "log"):
        objective = make(temperature=0.3, temperature_form=form)
        grads[form] = gradient(objective, init(objective, towers()))
    np.testing.assert_allclose(grads["log"]["logit_scale"], -0.3 * grads["raw"]["temperature"], rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "name", "beyond", "limit", "within"),
    [
        ("raw", "temperature", -0.4, 0.01, 0.02),
        ("log", "logit_scale", 7.0, math.log(100), math.log(99)),
    ],
)
def test_project_clamps_only_a_temperature_out_of_range(form, name, beyond, limit, within):
    objective = make(temperature_form=form)
    params = init(objective, towers())
    clamped = objective.project(params | {name: jnp.float32(beyond)})
    np.testing.assert_allclose(clamped[name], limit, rtol=1e-6)
    kept = objective.project(params | {name: jnp.float32(within)})
    np.testing.assert_array_equal(kept[name], np.float32(within))
    for found in (clamped, kept):
        rest = {key: value for key, value in found.items() if key != name}
        jax.tree.map(np.testing.assert_array_equal, rest, {k: v for k, v in params.items() if k != name})


@pytest.mark.parametrize(("form", "name"), [("raw", "temperature"), ("log", "logit_scale")])
def test_at_the_limit_the_gradient_is_not_cut(form, name):
    objective = make(temperature_form=form, temperature=0.01)
    params = objective.project(init(objective, towers()))
    grad = gradient(objective, params)
    assert abs(grad[name]) > 1e-3


def test_an_update_beyond_the_limit_ends_at_the_limit():
    objective = make(temperature=0.02)
    params = init(objective, towers())
    grad = gradient(objective, params)
    sign = float(jnp.sign(grad["temperature"]))
    assert sign < 0  # random pairs want a higher temperature: push the other way
    pushed = objective.project(jax.tree.map(lambda p, g: p + g, params, grad))
    np.testing.assert_allclose(pushed["temperature"], 0.01, rtol=1e-6)


def test_the_image_is_its_own_embedding_and_must_have_its_width():
    outputs = towers(image_width=4)
    with pytest.raises(ValueError, match="embed_dim is 3 but the image encoder gives 4"):
        init(make(), outputs)
    projected = init(make(image_projection=True), outputs)
    assert projected["image_projection"]["kernel"].shape == (4, DIM)
    assert "bias" not in projected["image_projection"]
    assert "image_projection" not in init(make(), towers())


@pytest.mark.parametrize("bias", [True, False])
def test_text_bias(bias):
    params = init(make(text_projection_bias=bias), towers())
    assert params["text_projection"]["kernel"].shape == (WIDTH, DIM)
    assert ("bias" in params["text_projection"]) == bias


def test_features_are_the_normalised_towers():
    objective, outputs = make(), towers()
    params = init(objective, outputs)
    params["text_projection"]["bias"] += jnp.arange(DIM, dtype=jnp.float32)
    features = objective.head.apply(dict(params=params), outputs)
    dense = params["text_projection"]
    expected = outputs["text"]["pooled"] @ dense["kernel"] + dense["bias"]
    for found, raw in ((features["image"], outputs["image"]["pooled"]), (features["text"], expected)):
        unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose(found, unit, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["image", "text"])
def test_one_tower_alone_gives_its_features_as_both_do(name):
    objective, outputs = make(), towers()
    variables = dict(params=init(objective, outputs))
    alone = objective.head.apply(variables, {name: outputs[name]})
    assert set(alone) == {name, f"projected_{name}", "temperature"}
    np.testing.assert_array_equal(alone[name], objective.head.apply(variables, outputs)[name])


def test_loss_is_that_of_the_features_and_reports_the_temperature():
    """All embeddings equal: each direction's loss is log B, with and without smoothing."""
    objective = make(label_smoothing=0.1)
    unit = jnp.ones((B, 1))
    features = dict(image=unit, text=unit, temperature=jnp.float32(0.5))
    loss, metrics, state = objective.loss(features, {}, objective.initial_state(), 0)
    np.testing.assert_allclose(loss.mean, 2 * math.log(B), rtol=1e-6)
    assert metrics["temperature"].mean == 0.5
    assert state == {}
    eye = dict(image=jnp.eye(B), text=jnp.eye(B), temperature=jnp.float32(0.05))
    smooth, sharp = (make(label_smoothing=e).loss(eye, {}, {}, 0)[0].mean for e in (0.1, 0.0))
    # Logits 20 on the pair, 0 elsewhere: smoothing moves 0.1 * 3/4 of the target to the zeros.
    np.testing.assert_allclose(smooth - sharp, 2 * 0.1 * 3 / 4 * 20, rtol=1e-5)


def test_it_couples_examples_and_needs_one_pass_of_each_tower():
    calls = dict(image=EncoderCall("image", "image"), text=EncoderCall("text", "text"))
    assert (make().scope, make().inputs) == ("batch", calls)


def test_a_logit_bias_makes_the_loss_siglips():
    objective = make(temperature=0.1, temperature_form="log", logit_bias=-10.0)
    params = init(objective, towers())
    features = objective.head.apply(dict(params=params), towers())
    loss, metrics, _ = objective.loss(features, {}, {}, 0)
    logits = features["image"] @ features["text"].T / 0.1 - 10
    signs = 2 * jnp.eye(B) - 1
    np.testing.assert_allclose(loss.mean, -jax.nn.log_sigmoid(signs * logits).sum() / B, rtol=1e-5)
    assert metrics["logit_bias"].mean == -10
    # SigLIP's temperature has no bound.
    params["logit_scale"] += 7
    assert objective.project(params) == params


IDENTITY = dict(
    key=np.array([[7, 1], [7, 2], [7, 1], [7, 2]], np.uint32), valid=np.array([True, True, True, False])
)
LABEL = np.array([5, 3, 5, 3], np.int32)


@pytest.mark.parametrize(
    ("value", "relation"),
    [(IDENTITY, dict(positives=IDENTITY["key"], valid=IDENTITY["valid"])), (LABEL, dict(positives=LABEL))],
)
@pytest.mark.parametrize("bias", [None, -1.0])
def test_a_batch_field_marks_the_positives(value, relation, bias):
    """Of the softmax, and of SigLIP's sigmoid."""
    objective = make(positives="same", temperature=0.1, temperature_form="log", logit_bias=bias)
    calls = dict(image=EncoderCall("image", "image"), text=EncoderCall("text", "text"))
    assert objective.inputs == calls | dict(positives=BatchField("same"))
    features = objective.head.apply(dict(params=init(objective, towers())), towers())
    loss, metrics, _ = objective.loss(features, dict(positives=value), {}, 0)
    arguments = [features[name] for name in ("image", "text", "temperature")]
    expected, _ = (
        softmax_contrastive(*arguments, **relation)
        if bias is None
        else sigmoid_contrastive(*arguments, bias, **relation)
    )
    np.testing.assert_allclose(loss.mean, expected, rtol=1e-6)
    without, *_ = make(logit_bias=bias).loss(features, {}, {}, 0)
    assert abs(loss.mean - without.mean) > 1e-2
    assert ("lower_bound" in metrics) == (bias is None)


@pytest.mark.parametrize("value", [dict(ids=LABEL, mask=LABEL), np.zeros((B, 8, 8, 3))])
def test_a_field_that_marks_no_positives_is_named(value):
    objective = make(positives="text")
    features = objective.head.apply(dict(params=init(objective, towers())), towers())
    message = "contrastive.positives is 'text'; it must be a field of kind label or identity"
    with pytest.raises(ValueError, match=message):
        objective.loss(features, dict(positives=value), {}, 0)


@pytest.mark.parametrize(("form", "name"), [("raw", "temperature"), ("log", "logit_scale")])
def test_without_a_clamp_the_temperature_has_no_bound(form, name):
    """UniCL's logit scale begins at 1, a temperature of 1 / e."""
    objective = make(temperature_form=form, temperature=math.exp(-1), temperature_clamp=False)
    params = init(objective, towers())
    np.testing.assert_allclose(params[name], math.exp(-1) if form == "raw" else 1.0, rtol=1e-6)
    beyond = params | {name: jnp.float32(7.0 if form == "log" else 1e-4)}
    assert objective.project(beyond) == beyond
    assert make(temperature_form=form).project(beyond) != beyond


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(implementation="rings"), "'rings'"),
        (dict(logit_bias=-10.0, label_smoothing=0.1), "label_smoothing"),
    ],
)
def test_options_that_cannot_be_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        make(**options)
