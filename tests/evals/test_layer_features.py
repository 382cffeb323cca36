"""Tokens and attention of layers by name, against the encoder's module and against NumPy."""

import functools
import json
import pathlib
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

import big_ssl
from big_ssl.inference import Model
from big_ssl.models.layer_layouts import stack_layers
from big_ssl.models.vit import ViT
from big_ssl.weights import architecture
from tests.parity import goldens
from tests.parity.other_sizes import random_images

CLOSE = dict(rtol=1e-4, atol=1e-5)
# Images that are not square and end in a rest that is no whole patch of 8 pixels; their grid of patches.
SIZE, GRID = (27, 45), (3, 5)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(kind) -> the loaded golden model of a format, read once."""
    loaded = {}

    def load(kind):
        if kind not in loaded:
            path = goldens.write_checkpoint(kind, tmp_path_factory.mktemp(kind))
            source, options = kind, {}
            if kind == "clip_resnet":
                source, options = "openai_clip", dict(text_num_heads=2)
            loaded[kind] = big_ssl.load(path, source=source, options=options)
        return loaded[kind]

    return load


@pytest.fixture
def dino(models):
    """Of two layers, three heads and three registers."""
    return models("hf_dinov2")


def layers_of_the_module(model, images, indices):
    """{name: [n, B, ...]} by the encoder itself, on images that NumPy normalises."""
    view = model.config["views"]["image"]
    normalised = ((images / 255 - view["mean"]) / view["std"]).astype(np.float32)
    variables = architecture.encoder_variables(model.variables, "image")
    run = jax.jit(lambda x: model.encoder.apply(variables, x, intermediate=indices)["layers"])
    return jax.device_get(run(normalised))


def normalize(x, params, epsilon):
    """A layer norm in NumPy."""
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * np.asarray(params["scale"]) + np.asarray(params["bias"])


def image_params(model):
    return model.variables["params"]["encoders"]["image"]


@pytest.mark.parametrize("kind", ["hf_dinov2", "hf_clip", "hf_siglip"])
def test_intermediate_layers_are_those_of_the_module(kind, models):
    """By indices in their order; each model has the tokens that its encoder has."""
    model, images = models(kind), random_images(SIZE)
    expected = layers_of_the_module(model, images, (1, 0))
    layers = model.intermediate_layers(images, (-1, 0), resize=False)
    names = dict(hf_dinov2={"cls", "registers", "patches"}, hf_clip={"cls", "patches"}, hf_siglip={"patches"})
    assert [set(tokens) for tokens in layers] == [names[kind]] * 2
    for i, tokens in enumerate(layers):
        for name, array in tokens.items():
            assert (type(array), array.dtype) == (np.ndarray, np.float32)
            np.testing.assert_allclose(array, expected[name][i], **CLOSE)
    assert layers[0]["patches"].shape == (2, 15, model.encoder.width)
    assert np.abs(layers[0]["patches"] - layers[1]["patches"]).max() > 0.1


def test_a_number_of_layers_counts_from_the_end_in_ascending_order(dino):
    images = random_images(SIZE)
    both = dino.intermediate_layers(images, 2, resize=False)
    for n, expected in ((1, both[1:]), (np.int64(1), both[1:]), ([0], both[:1])):
        (tokens,) = dino.intermediate_layers(images, n, resize=False)
        for name, array in tokens.items():
            np.testing.assert_allclose(array, expected[0][name], **CLOSE)


def test_image_tokens_are_those_of_the_last_layer(dino):
    images = random_images(SIZE)
    tokens, (last,) = (read(images, resize=False) for read in (dino.image_tokens, dino.intermediate_layers))
    assert {name: array.shape for name, array in tokens.items()} == dict(
        cls=(2, 24), registers=(2, 3, 24), patches=(2, 15, 24)
    )
    for name, array in tokens.items():
        np.testing.assert_allclose(array, last[name], **CLOSE)
    np.testing.assert_allclose(tokens["patches"], dino.patch_features(images, resize=False), **CLOSE)
    np.testing.assert_allclose(tokens["cls"], dino.pooled_features(images, resize=False), **CLOSE)


def test_a_grid_is_row_by_row_with_channels_last(dino):
    images, options = random_images(SIZE), dict(resize=False, reshape=True)
    (layer,), tokens = dino.intermediate_layers(images, **options), dino.image_tokens(images, **options)
    rows = dino.patch_features(images, resize=False)
    for grid in (layer["patches"], tokens["patches"]):
        assert grid.shape == (2, *GRID, 24)
        np.testing.assert_allclose(grid[:, 1, 2], rows[:, 1 * 5 + 2], **CLOSE)
        np.testing.assert_allclose(grid.reshape(rows.shape), rows, **CLOSE)
    assert (layer["registers"].shape, layer["cls"].shape) == ((2, 3, 24), (2, 24))


def test_without_norm_tokens_are_before_the_final_norm(dino):
    images, norm = random_images(SIZE), image_params(dino)["final_norm"]
    for raw, normed in zip(
        dino.intermediate_layers(images, 2, norm=False, resize=False),
        dino.intermediate_layers(images, 2, resize=False),
        strict=True,
    ):
        for name in ("cls", "registers", "patches"):
            np.testing.assert_allclose(normalize(raw[name], norm, 1e-6), normed[name], rtol=1e-4, atol=1e-4)
            assert np.abs(raw[name] - normed[name]).max() > 0.1


def test_attention_maps_are_the_softmax_of_queries_and_keys(dino):
    """In NumPy, from the tokens after the layer before."""
    images, params = random_images(SIZE), image_params(dino)["layer1"]
    (tokens,) = dino.intermediate_layers(images, [0], norm=False, resize=False)
    x = np.concatenate([tokens["cls"][:, None], tokens["registers"], tokens["patches"]], axis=1)
    x = normalize(x, params["attention_norm"], 1e-6)
    query, key = (
        (x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])).reshape(2, 19, 3, 8)
        for name in ("query", "key")
    )
    scores = np.exp(np.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5)
    expected = scores / scores.sum(-1, keepdims=True)
    for layer in (1, -1):
        weights = dino.attention_maps(images, layer, resize=False)
        assert (weights.shape, weights.dtype) == ((2, 3, 19, 19), np.float32)
        np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=1e-5)
    assert np.ptp(expected) > 0.1
    assert np.abs(dino.attention_maps(images, 0, resize=False) - expected).max() > 0.01


def test_a_scanned_encoder_has_the_same_layers_and_attention(dino):
    """As a run with scanned layers stores it."""
    encoders = dict(image=dino.config["encoders"]["image"] | dict(scan=True))
    params = dino.variables["params"] | dict(
        encoders=dict(image=stack_layers(image_params(dino), ViT.stacks))
    )
    scanned = Model(dino.config | dict(encoders=encoders), dino.variables | dict(params=params))
    images = random_images(SIZE)
    calls = (
        lambda model: model.intermediate_layers(images, 2, norm=False, reshape=True, resize=False),
        lambda model: model.attention_maps(images, 0, resize=False),
        lambda model: model.class_attention(images, -1, resize=False),
    )
    for call in calls:
        jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), call(scanned), call(dino))


@pytest.mark.parametrize(("kind", "registers"), [("hf_dinov2", 3), ("hf_clip", 0)])
def test_class_attention_is_the_class_tokens_row_on_the_grid(kind, registers, models):
    model, images = models(kind), random_images(SIZE)
    for layer in (0, -1):
        maps = model.class_attention(images, layer, resize=False)
        row = model.attention_maps(images, layer, resize=False)[:, :, 0, 1 + registers :]
        assert maps.shape == (2, model.encoder.heads, *GRID)
        np.testing.assert_allclose(maps, row.reshape(maps.shape), **CLOSE)


def test_a_vit_without_class_token_has_attention_maps(models):
    weights = models("hf_siglip").attention_maps(random_images((24, 24)), resize=False)
    assert weights.shape == (2, models("hf_siglip").encoder.heads, 9, 9)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_images_of_several_sizes_are_preprocessed_one_by_one(models):
    """All of these methods take what encode_image takes: here a list of any sizes, and a single image."""
    model = models("hf_clip")
    images = [random_images(size, 1)[0] for size in ((40, 31), (24, 24))]
    (layer,), tokens = model.intermediate_layers(images), model.image_tokens(images)
    maps, attention = model.attention_maps(images), model.class_attention(images)
    for i, image in enumerate(images):
        (one,) = model.intermediate_layers(image)
        np.testing.assert_allclose(layer["patches"][i], one["patches"][0], **CLOSE)
        np.testing.assert_allclose(tokens["cls"][i], one["cls"][0], **CLOSE)
        np.testing.assert_allclose(maps[i], model.attention_maps(image)[0], **CLOSE)
        np.testing.assert_allclose(attention[i], model.class_attention(image)[0], **CLOSE)
    with pytest.raises(ValueError, match="images are not all of one shape"):
        model.intermediate_layers(images, resize=False)


def test_an_evaluation_stops_at_layers_that_are_not_finite(dino):
    """Those of one layer are enough."""
    variables = jax.tree.map(np.array, dino.variables)
    variables["params"]["encoders"]["image"]["layer1"]["mlp_out"]["bias"][0] = np.nan
    broken, images = dino.for_evaluation(variables), random_images((16, 16))
    assert np.isfinite(broken.intermediate_layers(images, [0], resize=False)[0]["cls"]).all()
    with pytest.raises(ValueError, match=r"^features of 2 of 2 examples are not finite$"):
        broken.intermediate_layers(images, 2, resize=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x: m.intermediate_layers(x, 3),
            "layers: the last 3 layers are requested; the image",
        ),
        (
            lambda m, x: m.intermediate_layers(x, 0),
            "layers: the last 0 layers are requested; the image",
        ),
        (
            lambda m, x: m.intermediate_layers(x, [0, 2]),
            r"layers: layers \[0, 2\] are requested; the im",
        ),
        (
            lambda m, x: m.intermediate_layers(x, []),
            r"layers: layers \[\] are requested; the image",
        ),
        (lambda m, x: m.attention_maps(x, -3), r"^attention_maps: layers \[-3\] are requested; .* has 2$"),
        (lambda m, x: m.class_attention(x, 2), r"^class_attention: layers \[2\] are requested; .* has 2$"),
        (lambda m, x: m.image_tokens(x / 255), r"^images are float64\[2, 24, 24, 3\]; they must be uint8"),
    ],
)
def test_layers_that_there_are_not_are_named(call, message, dino):
    with pytest.raises(ValueError, match=message) as caught:
        call(dino, random_images((24, 24)))
    assert "\n" not in str(caught.value)


LAYERS = "this model has no transformer layers: its image encoder is {}; it has encode_image, "


@pytest.mark.parametrize(
    ("kind", "method", "message"),
    [
        ("hf_align", "image_tokens", LAYERS.format("EfficientNet")),
        ("hf_align", "intermediate_layers", LAYERS.format("EfficientNet")),
        ("clip_resnet", "intermediate_layers", LAYERS.format("ModifiedResNet")),
        ("clip_resnet", "attention_maps", "no attention maps: its image encoder is ModifiedResNet; it has "),
        (
            "hf_align",
            "class_attention",
            "no class token that attends to patches: its image encoder is E",
        ),
        (
            "hf_siglip",
            "class_attention",
            "no class token that attends to patches: its image encoder is V",
        ),
    ],
)
def test_what_an_encoder_lacks_is_one_line(kind, method, message, models):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(models(kind), method)(random_images((24, 24)))
    assert "\n" not in str(caught.value)
    assert method not in models(kind).methods


@pytest.mark.parametrize(
    ("kind", "name", "tokens"),
    [
        ("hf_clip", "registers", "cls, patches"),
        ("hf_siglip", "registers", "patches"),
        ("hf_siglip", "cls", "patches"),
    ],
)
def test_tokens_that_a_model_lacks_are_named(kind, name, tokens, models):
    with pytest.raises(KeyError, match=f"this model has no {name}; its tokens are {tokens}'$"):
        models(kind).image_tokens(random_images((24, 24)))[name]


@pytest.mark.slow
def test_the_example_of_the_documentation(tmp_path, monkeypatch):
    """As it stands, but for the number of pixels."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "evaluate.md"
    section = page.read_text(encoding="utf-8").partition("\n## Features\n")[2].partition("\n## ")[0]
    example = textwrap.dedent("\n".join(line for line in section.split("\n") if line.startswith("    ")))
    monkeypatch.chdir(tmp_path)
    goldens.write_checkpoint("hf_dinov2", tmp_path / "dinov2")
    processor = dict(size=dict(shortest_edge=32), crop_size=dict(height=24, width=24))
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(json.dumps(processor))
    for name in ("a.jpg", "b.png"):
        Image.fromarray(random_images((40, 30), 1)[0]).save(name)
    names: dict = {}
    exec(example.replace("518", "56"), names)
    shapes = {name: array.shape for name, array in names["tokens"].items()}
    assert shapes == dict(cls=(2, 24), registers=(2, 3, 24), patches=(2, 9, 24))
    assert [layer["patches"].shape for layer in names["layers"]] == [(2, 9, 24)] * 2
    assert (names["weights"].shape, names["maps"].shape) == ((2, 3, 13, 13), (2, 3, 3, 3))
    assert names["patches"].shape == (1, 7 * 7, 24)


@pytest.mark.parametrize("kind", ["hf_align", "clip_resnet"])
def test_a_convolutional_encoder_has_its_map(kind, models):
    """[B, h, w, D], as `reshape` gives a ViT's patches."""
    assert models(kind).patch_features(random_images((64, 96)), resize=False).ndim == 4
