"""Weights of RGB models for images of other channels, and public weights of such models."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import big_ssl
from big_ssl.models import efficientnet, resnet, swin, vit
from big_ssl.training.initial import fitted
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from big_ssl.weights.tensor_files import read_tensors, write_safetensors
from tests.parity import goldens

RNG = np.random.default_rng(0)
FIRST = "params/encoders/image/patch_embedding/kernel"
SETTINGS = dict(image_processor_type="CLIPImageProcessor", size=24, crop_size=24)
GREY = RNG.integers(0, 256, (2, 24, 24, 1), np.uint8)


@pytest.fixture
def rgb(tmp_path):
    """HF's CLIP on random weights, with one mean and deviation for all channels."""
    folder = goldens.write_checkpoint("hf_clip", tmp_path / "in")
    settings = SETTINGS | dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_grey_image_has_the_features_that_it_has_as_rgb(rgb):
    expected = big_ssl.load(rgb).encode_image(np.repeat(GREY, 3, -1))
    found = big_ssl.load(rgb, options=dict(channels=1)).encode_image(GREY)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_repeated_channels_have_the_features_of_rgb(rgb):
    """Six channels, of which the last three are the first again."""
    images = RNG.integers(0, 256, (2, 24, 24, 3), np.uint8)
    model = big_ssl.load(rgb, options=dict(channels=6))
    found = model.encode_image(np.concatenate([images, images], -1))
    np.testing.assert_allclose(found, big_ssl.load(rgb).encode_image(images), atol=1e-5)
    with pytest.raises(
        ValueError, match=r"images are uint8\[2, 24, 24, 3\]; they must be uint8\[B, H, W, 6\]"
    ):
        model.encode_image(images)


def test_means_and_deviations_are_repeated(tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path)
    plain, four = (read_checkpoint("hf_clip", path, options)[0] for options in ({}, dict(channels=4)))
    for key in ("mean", "std"):
        red, green, blue = plain["views"]["image"][key]
        assert four["views"]["image"][key] == [red, green, blue, red]


def test_our_format_stores_them_and_public_ones_refuse(rgb, tmp_path):
    config, ours = read_checkpoint("hf_clip", rgb, dict(channels=4))
    write_checkpoint("big_ssl", tmp_path / "ours", config, ours)
    again, same = read_checkpoint("big_ssl", tmp_path / "ours")
    assert again["encoders"]["image"]["channels"] == 4
    np.testing.assert_array_equal(same[FIRST], ours[FIRST])
    with pytest.raises(WeightsError, match="hf_clip is for images of 3 channels; this model reads 4"):
        write_checkpoint("hf_clip", tmp_path / "out", config, ours)
    with pytest.raises(WeightsError, match="channels is 5; only weights for 3 can be adapted"):
        read_checkpoint("big_ssl", tmp_path / "ours", dict(channels=5))


def test_public_weights_of_four_channels_are_read_as_they_are(rgb):
    name = "vision_model.embeddings.patch_embedding.weight"
    tensors = {key: np.array(x) for key, x in read_tensors(rgb / "model.safetensors").items()}
    kernel = RNG.normal(size=(24, 4, 8, 8)).astype(np.float32)
    write_safetensors(rgb / "model.safetensors", tensors | {name: kernel}, {})
    stated = json.loads((rgb / "config.json").read_text())
    stated["vision_config"]["num_channels"] = 4
    (rgb / "config.json").write_text(json.dumps(stated))
    config, ours = read_checkpoint("hf_clip", rgb)
    assert config["views"]["image"]["mean"] == [0.5] * 4
    np.testing.assert_array_equal(ours[FIRST], kernel.transpose(2, 3, 1, 0))
    settings = SETTINGS | dict(image_mean=[0.4, 0.5, 0.6, 0.7], image_std=[0.25] * 4)
    (rgb / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_checkpoint("hf_clip", rgb)[0]["views"]["image"]["mean"] == [0.4, 0.5, 0.6, 0.7]
    settings |= dict(image_mean=[0.4, 0.5, 0.6], image_std=0.25)
    (rgb / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        WeightsError, match=r"the mean of pixels is \[0.4, 0.5, 0.6\]; the weights read 4 channels"
    ):
        read_checkpoint("hf_clip", rgb)


def test_open_clips_means_are_as_many_as_the_channels(rgb, tmp_path):
    config, ours = read_checkpoint("hf_clip", rgb)
    write_checkpoint("open_clip", tmp_path / "out", config, ours)
    file, weights = (tmp_path / "out" / f"open_clip_{name}" for name in ("config.json", "model.safetensors"))
    tensors = {key: np.array(x) for key, x in read_tensors(weights).items()}
    kernel = RNG.normal(size=(24, 4, 8, 8)).astype(np.float32)
    written = json.loads(file.read_text())
    written["preprocess_cfg"] |= dict(mean=[0.4, 0.5, 0.6, 0.7], std=[0.2] * 4)
    file.write_text(json.dumps(written))
    with pytest.raises(WeightsError, match=r"mean of pixels is .*0\.7\]; the weights read 3 channels"):
        read_checkpoint("open_clip", tmp_path / "out")
    write_safetensors(weights, tensors | {"visual.conv1.weight": kernel}, {})
    view = read_checkpoint("open_clip", tmp_path / "out")[0]["views"]["image"]
    assert (view["mean"], view["std"]) == ([0.4, 0.5, 0.6, 0.7], [0.2] * 4)


@pytest.mark.parametrize("channels", ["4", 0, -1, 2.5, True])
def test_channels_must_be_a_whole_number_from_1(channels, rgb):
    with pytest.raises(WeightsError, match=f"channels is {channels!r}; it must be a whole number from 1"):
        read_checkpoint("hf_clip", rgb, dict(channels=channels))


ENCODERS = dict(
    vit=vit.ViT(patch=8, width=16, depth=1, heads=2, image_size=16, channels=5),
    resnet=resnet.ModifiedResNet(width=8, blocks=(1, 1, 1, 1), image_size=32, channels=5),
    swin=swin.Swin(width=8, depths=(2,), heads=(2,), window=2, channels=5),
    coswin=swin.Swin(width=8, depths=(2,), heads=(2,), window=2, channels=5, embedding="conv"),
    efficientnet=efficientnet.EfficientNet(width=0.1, depth=0.1, channels=5),
)


@pytest.mark.parametrize("kind", ENCODERS)
def test_init_from_rgb_weights(kind):
    """Every encoder's first kernel, as timm's adapt_input_conv fits it."""
    module = ENCODERS[kind]
    kernel = RNG.normal(size=(3, 3, 3, 8)).astype(np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 32, 32, 5)))["params"]
    assert flatten_dict(params, sep="/")[module.first_kernel].shape[2] == 5
    found = fitted(f"params/encoders/image/{module.first_kernel}", kernel, (3, 3, 5, 8), dict(image=module))
    expected = np.concatenate([kernel, kernel[:, :, :2]], 2) * 0.6
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"is \[3, 3, 4, 8\] in the weights and \[3, 3, 5, 8\] in this model"
    ):
        fitted(
            f"params/encoders/image/{module.first_kernel}",
            kernel[:, :, [0, 1, 2, 0]],
            (3, 3, 5, 8),
            dict(image=module),
        )
