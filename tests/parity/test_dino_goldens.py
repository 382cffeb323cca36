"""DINOv2 with registers and SwiGLU, from file to features, against what make_goldens.py has written down."""

import json

import jax
import numpy as np
import pytest

import big_ssl
from big_ssl.weights import architecture
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from tests.parity import goldens
from tests.parity.goldens import CLOSE, UNOPTIMISED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted model."""
    where = tmp_path_factory.mktemp("dinov2")
    config, ours = read_checkpoint("hf_dinov2", goldens.write_checkpoint("hf_dinov2", where / "in"))
    write_checkpoint("big_ssl", where / "out", config, ours)
    return where / "out"


@pytest.fixture(scope="module")
def model(folder):
    return big_ssl.load(folder)


@pytest.mark.parametrize("size", ["native", "wide"])
def test_transformers_tokens(size, folder):
    """At the size of the position table and at another, with masked patches and without."""
    goldens.assert_tokens("hf_dinov2", size, *read_checkpoint("big_ssl", folder))


def test_features_of_a_model_without_texts(model):
    """Of pictures of any size, seen as DINOv2 sees them; what is pooled is the class token."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 24, 48, 3), np.uint8)
    view = model.config["views"]["image"]
    images = (pictures / 255 - view["mean"]) / view["std"]
    tower = architecture.modules(model.config).image
    variables = architecture.encoder_variables(model.variables, "image")
    expected = jax.jit(tower.apply, **UNOPTIMISED)(variables, images.astype(np.float32))
    found = model.encode_image(pictures, normalize=False, resize=False)
    np.testing.assert_allclose(found, expected["pooled"], **CLOSE)
    unit = model.encode_image(pictures, resize=False)
    np.testing.assert_allclose(unit, found / np.linalg.norm(found, axis=1, keepdims=True), **CLOSE)
    np.testing.assert_allclose(model.patch_features(pictures, resize=False), expected["patches"], **CLOSE)
    assert (model.config["image_size"], model.config["resize"]) == (224, "crop 256 floor")
    with pytest.raises(ValueError, match="this model has no text encoder: it embeds images alone"):
        model.encode_text(["a cat"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.layer.1.layer_scale2.lambda1", None, "encoder.layer.1.layer_scale2.lambda1 is missing"),
        ("embeddings.mask", np.zeros(3), "embeddings.mask is no weight of this architecture"),
        (
            "encoder.layer.0.mlp.weights_in.bias",
            np.zeros(40, np.float32),
            r"encoder.layer.0.mlp.weights_in.bias is \[40\]; the architecture has \[64\]",
        ),
        (
            "embeddings.register_tokens",
            np.zeros((3, 24), np.float32),
            r"embeddings.register_tokens is \[3, 24\]; it must have 3 axes",
        ),
    ],
)
def test_a_weight_that_does_not_fit(name, value, message, tmp_path):
    path = goldens.write_checkpoint("hf_dinov2", tmp_path, **{name: value})
    with pytest.raises(WeightsError, match=message):
        read_checkpoint("hf_dinov2", path)


def test_there_and_back_is_bit_identical(folder, tmp_path):
    write_checkpoint("hf_dinov2", tmp_path, *read_checkpoint("big_ssl", folder))
    (config, ours), (again, found) = (
        read_checkpoint(kind, path) for kind, path in (("big_ssl", folder), ("hf_dinov2", tmp_path))
    )
    assert found.keys() == ours.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(found[path], value)
    assert architecture.with_defaults(again)["encoders"] == config["encoders"]
    seen = {key: json.loads(json.dumps(again[key])) for key in ("views", "image_size", "resize", "tokenizer")}
    assert seen == {key: config[key] for key in seen}


def test_what_another_format_has_no_place_for_is_not_written(folder, tmp_path):
    clip = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "clip"))
    dino, (config, ours) = read_checkpoint("big_ssl", folder), read_checkpoint("big_ssl", folder)
    image = config["encoders"]["image"]
    without = config | dict(encoders=dict(image=image | dict(mask_token=False)))
    odd = config | dict(encoders=dict(image=image | dict(mlp_dim=36)))
    for model, kind, message in (
        (dino, "hf_clip", "hf_clip is for models of image and text; this is one of image"),
        (clip, "hf_dinov2", "hf_dinov2 is for models of image; this is one of image and text"),
        (dino, "hf_vit", "hf_vit: image.feed_forward is 'swiglu'; a ViTModel has 'mlp'"),
        (dino, "dinov2", "dinov2 can only be read; writable formats: big_ssl, open_clip, hf_clip, "),
        ((without, ours), "hf_dinov2", "image.mask_token is False; a Dinov2WithRegistersModel has True"),
        ((odd, ours), "hf_dinov2", "image.mlp_dim 36 has no integer mlp_ratio to the width 24"),
    ):
        with pytest.raises(WeightsError, match=message):
            write_checkpoint(kind, tmp_path / "out", *model)
    assert not (tmp_path / "out").exists()


def test_no_weight_of_the_golden_file_is_a_default():
    """Zeros and ones would hide what a mapping forgets."""
    for key, value in goldens.golden("hf_dinov2")[0].items():
        assert value.std() > 0.05, key
        assert not np.isin(value, (0, 1)).any(), key
