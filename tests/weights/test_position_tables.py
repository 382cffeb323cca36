"""Exports of models that read images of another size than their position table's."""

import json

import numpy as np
import pytest

import big_ssl
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from tests.parity import goldens

RNG = np.random.default_rng(0)


def plain_vit(folder):
    """A ViT as ViTModel's, of DINOv2's golden file."""
    config, ours = read_checkpoint("hf_dinov2", goldens.write_checkpoint("hf_dinov2", folder))
    image = config["encoders"]["image"] | dict(registers=0, layer_scale=None, feed_forward="mlp")
    unused = ("registers", "_scale", "mlp_gate/")
    ours = {path: array for path, array in ours.items() if not any(name in path for name in unused)}
    return config | dict(encoders=dict(image=image)), ours


def read_model(kind, folder):
    if kind == "hf_vit":
        return plain_vit(folder)
    source = "hf_clip" if kind == "open_clip" else kind
    return read_checkpoint(source, goldens.write_checkpoint(source, folder))


@pytest.mark.parametrize("kind", ["hf_dinov2", "hf_vit", "hf_clip", "open_clip"])
@pytest.mark.parametrize("change", [2, pytest.param(-1, marks=pytest.mark.slow)])
def test_features_at_image_size_are_those_before_the_export(kind, change, tmp_path):
    """The formats' classes resize tables in another way than DINO's code."""
    config, ours = read_model(kind, tmp_path / "in")
    image = config["encoders"]["image"]
    size = image["image_size"] + change * image["patch"]
    image["position_resize"] = "dinov2"
    config |= dict(image_size=size, resize="stretch")
    write_checkpoint("big_ssl", tmp_path / "ours", config, ours)
    write_checkpoint(kind, tmp_path / "out", config, ours)
    images = RNG.integers(0, 256, (2, size, size, 3), np.uint8)
    expected = big_ssl.load(tmp_path / "ours").encode_image(images)
    model = big_ssl.load(tmp_path / "out")
    assert model.config["encoders"]["image"]["image_size"] == size
    np.testing.assert_allclose(model.encode_image(images), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["hf_dinov2", "hf_vit", "hf_clip"])
def test_a_table_that_the_class_resizes_as_we_do_is_written_as_it_is(kind, tmp_path):
    config, ours = read_model(kind, tmp_path / "in")
    image = config["encoders"]["image"]
    image["position_resize"] = "bicubic_antialias" if image.get("registers") else "bicubic"
    config |= dict(image_size=image["image_size"] + 2 * image["patch"], resize="stretch")
    write_checkpoint(kind, tmp_path / "out", config, ours)
    again, written = read_checkpoint(kind, tmp_path / "out")
    assert again["image_size"] == config["image_size"]
    table = "params/encoders/image/position_embedding"
    np.testing.assert_array_equal(written[table], ours[table])
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stated.get("vision_config", stated)["image_size"] == image["image_size"]
