"""The one Predictor of runs and loaded models, with real systems of small encoders."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.evals import capabilities, suite
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.retrieval import Retrieval
from big_ssl.losses.pairwise import Pairwise
from big_ssl.objectives.base import EncoderCall, Provided
from big_ssl.objectives.contrastive import Contrastive, ContrastiveHead
from big_ssl.objectives.koleo import KoLeo
from big_ssl.training.system import Term
from tests.evals.conftest import CLASS_COLOURS, colour_system, make_predictor, tokenize

RNG = np.random.default_rng(1)


def images(count):
    return RNG.integers(0, 256, (count, 4, 4, 3), np.uint8)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def on_devices():
    """{devices: a Predictor of batches of 7}, compiled once."""
    return {n: make_predictor(*colour_system(), devices=n, batch_size=7).for_evaluation() for n in (1, 8)}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 33])
def test_any_number_of_images(count, devices, on_devices):
    predictor, pixels = on_devices[devices], images(count)
    colours = pixels.reshape(count, -1, 3).mean(1) - 60
    options = dict(resize=False)
    np.testing.assert_allclose(predictor.encode_image(pixels, **options), unit(colours), atol=1e-5)
    raw = predictor.encode_image(pixels, normalize=False, **options)
    np.testing.assert_allclose(raw, colours, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(raw, predictor.pooled_features(pixels, **options))
    nearest = ((colours[:, None] + 60 - CLASS_COLOURS) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(predictor.classify(pixels, **options).argmax(1), nearest)


def test_an_evaluation_stops_at_features_that_are_not_finite(on_devices):
    def logarithm(module, variables, inputs):
        return jnp.log(inputs.mean((1, 2)))

    pixels = images(5) // 2 + 100
    assert np.isfinite(on_devices[8].apply(logarithm, pixels)).all()
    pixels[2:4] = 0
    with pytest.raises(ValueError, match=r"^features of 2 of 5 examples are not finite$"):
        on_devices[8].apply(logarithm, pixels)


def test_texts(on_devices):
    texts = [f"text {i}" for i in range(11)]
    expected = unit(tokenize(texts)["ids"] / 100.0 - 60)
    np.testing.assert_allclose(on_devices[8].encode_text(texts), expected, atol=1e-5)


@pytest.mark.parametrize("size", [None, 3])
def test_a_function_of_the_encoder_is_compiled_once_for_its_options(size):
    predictor, traced = make_predictor(*colour_system(), batch_size=7).for_evaluation(), []

    def mean(module, variables, inputs, power):
        traced.append((module, inputs.shape))
        return jnp.mean(inputs, (1, 2, 3)) ** power

    pixels = images(9)
    expected = (pixels / 64.0 - 2).mean((1, 2, 3))
    for _ in range(2):
        np.testing.assert_allclose(predictor.apply(mean, pixels, 2, size=size), expected**2, rtol=1e-3)
    assert traced == [(predictor.encoder, (size or 7, 4, 4, 3))]
    np.testing.assert_allclose(predictor.apply(mean, pixels, 1), expected, rtol=1e-3)


# Which methods a model has.


def without(*names):
    """The predictor of a system without these objectives."""
    system, variables = colour_system()
    kept = {name: term for name, term in system.terms.items() if name not in names}
    return make_predictor(dataclasses.replace(system, terms=kept), variables)


def test_methods_follow_from_encoders_and_heads(predictor):
    expected = [method for method in capabilities.METHODS if method not in capabilities.TASKS]
    assert predictor.methods == tuple(expected)  # it has no dense head
    of_layers = ("image_tokens", "intermediate_layers", "attention_maps", "class_attention")
    of_the_encoder = ("encode_image", "patch_features", *of_layers)
    assert without("pairs").methods == (*of_the_encoder, "classify")
    assert without("pairs", "colours").methods == of_the_encoder


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: p.classify(images(1)),
            "this model has no classifier: none was trained; it has encode_image",
        ),
        (
            lambda p: p.encode_text(["a"]),
            "this model has no text encoder: it embeds images alone; it has encode",
        ),
        (
            lambda p: p.zero_shot(images(1), ["a"]),
            "this model has no text encoder: .* it has encode_image, patch",
        ),
    ],
)
def test_a_missing_method_is_one_line_with_the_methods_there_are(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        call(without("pairs", "colours"))
    assert "\n" not in str(caught.value)


def test_a_model_without_an_image_encoder_names_it():
    system, variables = colour_system()
    texts = dataclasses.replace(system, encoders=dict(text=system.encoders["text"]), terms={})
    predictor = make_predictor(texts, variables)
    assert predictor.methods == ()
    for method in ("encode_image", "pooled_features", "patch_features", "image_tokens", "attention_maps"):
        with pytest.raises(
            ValueError, match=r"^this model has no image encoder: it embeds texts alone; it has nothing$"
        ):
            getattr(predictor, method)(images(1))


def test_a_required_method_that_the_objectives_lack():
    """The message names what every objective provides."""
    system, variables = colour_system()
    terms = dict(colours=system.terms["colours"], koleo=Term("pairs", KoLeo(), lambda step: 1.0))
    predictor = make_predictor(dataclasses.replace(system, terms=terms), variables)
    texts = Retrieval(dict(kind="emoji", styles=("fxemoji",)), captions=("label",), name="x")
    message = (
        r"^evals\.x requires encode_text; the model has encode_image, patch_features, image_tokens, "
        r"intermediate_layers, attention_maps, class_attention, "
        r"classify \(its objectives provide colours: classify; koleo: nothing\)$"
    )
    with pytest.raises(ValueError, match=message):
        suite.check("evals.x", texts, predictor)


# Several objectives that provide one method.


def two_spaces(**predictors):
    """A second contrastive objective, whose head negates texts."""
    system, variables = colour_system()
    second = Term("others", Contrastive(ContrastiveHead(3), Pairwise("dense", None)), lambda step: 1.0)
    system = dataclasses.replace(system, terms=system.terms | dict(others=second), predictors=predictors)
    projection = dict(kernel=-jnp.eye(3), bias=jnp.zeros(3))
    heads = variables["params"]["heads"] | dict(others=dict(temperature=2.0, text_projection=projection))
    return system, variables | dict(params=variables["params"] | dict(heads=heads))


def choice(name):
    return dict.fromkeys(("encode_image", "encode_text", "zero_shot"), name)


def test_a_choice_among_two_contrastive_heads_decides_the_embeddings():
    found = {
        name: make_predictor(*two_spaces(**choice(name))).encode_text(["red", "blue"])
        for name in ("pairs", "others")
    }
    np.testing.assert_allclose(found["pairs"], -found["others"], atol=1e-6)


def test_an_undecided_method_is_an_error():
    with pytest.raises(ValueError, match=r"^predictors\.encode_image must be one of pairs, others: each of"):
        make_predictor(*two_spaces())


def test_embeddings_of_two_spaces_are_not_compared():
    predictor = make_predictor(*two_spaces(**choice("pairs") | dict(encode_text="others")))
    with pytest.raises(ValueError, match=r"one space; encode_image is pairs's, encode_text is others's"):
        suite.check("evals.x", _Both(), predictor)


class _Both(Evaluator):
    requires = ("encode_image", "encode_text")


@dataclasses.dataclass(frozen=True)
class _Renamed(Contrastive):
    """The contrastive objective with encoders, views and inputs of other names."""

    @property
    def inputs(self):
        return dict(photo=EncoderCall("vision", "photos"), caption=EncoderCall("language", "captions"))

    @property
    def provides(self):
        return dict(encode_image=Provided(("photo",), "photo"), encode_text=Provided(("caption",), "caption"))


class _RenamedHead(ContrastiveHead):
    def __call__(self, inputs, train=False):
        names = dict(photo="image", caption="text")
        features = super().__call__({names[name]: outputs for name, outputs in inputs.items()}, train)
        return {name: features[f"projected_{old}"] for name, old in names.items() if name in inputs}


def test_fields_and_encoders_of_any_name(predictor):
    """Nothing but a head's `provides` and its inputs decides what evaluation computes."""
    system, variables = colour_system()
    encoders = dict(vision=system.encoders["image"], language=system.encoders["text"])
    objective = _Renamed(_RenamedHead(3), Pairwise("dense", None))
    renamed = dataclasses.replace(
        system,
        encoders=encoders,
        terms=dict(some=Term("s", objective, lambda step: 1.0)),
    )
    params = variables["params"]
    params = dict(
        encoders=dict(vision=params["encoders"]["image"], language={}),
        heads=dict(some=params["heads"]["pairs"]),
    )
    other = make_predictor(renamed, dict(params=params, encoders=dict(vision={}, language={})))
    pixels = images(3)
    np.testing.assert_array_equal(other.encode_image(pixels), predictor.encode_image(pixels))
    np.testing.assert_array_equal(other.encode_text(["red"]), predictor.encode_text(["red"]))
    (one, two), expected = (each.intermediate_layers(pixels, 2) for each in (other, predictor))
    for name in ("cls", "patches"):
        np.testing.assert_allclose(one[name], expected[0][name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(two[name], expected[1][name], rtol=1e-5, atol=1e-6)
