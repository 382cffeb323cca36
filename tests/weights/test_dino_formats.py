"""Variants of DINOv2's, timm's and iBOT's files; their numbers are checked in tests/parity."""

import re

import numpy as np
import pytest

from big_ssl.weights import rules
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import FORMATS, read_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests.parity import goldens

IMAGE = "params/encoders/image/"
HEADS = dict(num_heads=3)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """(ModelConfig, our weights) with registers and SwiGLU."""
    where = tmp_path_factory.mktemp("golden")
    return read_checkpoint("hf_dinov2", goldens.write_checkpoint("hf_dinov2", where))


def read(kind, tensors, folder, **options):
    write_safetensors(folder / "model.safetensors", tensors, {})
    return read_checkpoint(kind, folder / "model.safetensors", HEADS | options)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value)


def test_dinov2_in_chunks(dinov2, tmp_path):
    config, ours = dinov2
    names = rules.write(FORMATS["dinov2"].rules(config), ours)
    assert names["blocks.1.mlp.w12.weight"].shape == (64, 24)
    assert names["register_tokens"].shape == (1, 3, 24)
    assert_same(read("dinov2", names, tmp_path)[1], ours)
    chunked = {
        f"teacher.backbone.{name}".replace("blocks.1.", "blocks.3.1."): value for name, value in names.items()
    }
    actual, weights = read("dinov2", chunked, tmp_path)
    assert_same(weights, ours)
    image = config["encoders"]["image"]
    assert {
        key: actual["encoders"]["image"][key] for key in image if key not in ("activation", "layer_scale")
    } == {key: image[key] for key in image if key not in ("activation", "layer_scale")}
    assert (actual["head"], actual["tokenizer"], actual["resize"]) == (None, None, "crop 256")


def test_dinov2_has_two_networks_in_a_training_run(dinov2, tmp_path):
    """As a trainer of one process saves it: names in chunks, losses' centers and the optimizer beside."""
    config, ours = dinov2
    teacher = rules.write(FORMATS["dinov2"].rules(config), ours)
    whole = {f"model.teacher.backbone.{name}": value for name, value in teacher.items()}
    whole |= {f"model.student.backbone.{name}": value + 1 for name, value in teacher.items()}
    whole = {name.replace("blocks.1.", "blocks.1.1."): value for name, value in whole.items()}
    whole |= {"model.dino_loss.center": np.zeros(1), "model.ibot_patch_loss.center": np.zeros(1)}
    whole["optimizer.state.0.exp_avg"] = np.zeros(1)
    assert_same(read("dinov2", whole, tmp_path)[1], ours)
    assert guess(tmp_path / "model.safetensors") == "dinov2"
    plus_one = {path: value + 1 for path, value in ours.items()}
    assert_same(read("dinov2", whole, tmp_path, network="student")[1], plus_one)
    with pytest.raises(WeightsError, match="network is 'student'; the file holds a backbone alone"):
        read("dinov2", teacher, tmp_path, network="student")


def test_position_resize_of_dinov2_depends_on_registers(dinov2, tmp_path):
    config, ours = dinov2
    names = rules.write(FORMATS["dinov2"].rules(config), ours)
    del names["register_tokens"]
    actual = read("dinov2", names, tmp_path)[0]["encoders"]["image"]
    assert (actual["registers"], actual["position_resize"]) == (0, "dinov2")
    actual = read("dinov2", names, tmp_path, position_resize="bicubic_antialias")[0]["encoders"]["image"]
    assert actual["position_resize"] == "bicubic_antialias"
    with pytest.raises(WeightsError, match="position_resize is 'x'; there are bicubic_antialias, dinov2"):
        read("dinov2", names, tmp_path, position_resize="x")
    with pytest.raises(WeightsError, match="extra is no weight of this architecture"):
        read("dinov2", names | dict(extra=np.zeros(1)), tmp_path)


def test_timm_adds_the_class_tokens_position_to_the_token(dinov2, tmp_path):
    config, ours = dinov2
    names = rules.write(FORMATS["timm_dinov2"].rules(config), ours)
    del names["mask_token"]
    table = names["pos_embed"]
    names["cls_token"] = names["cls_token"] + table[:, :1]
    names["pos_embed"] = table[:, 1:]
    actual, weights = read("timm_dinov2", names, tmp_path)
    first = f"{IMAGE}position_embedding"
    assert not weights[first][0].any()
    np.testing.assert_array_equal(weights[first][1:], ours[first][1:])
    expected = ours[f"{IMAGE}class_token"] + ours[first][0]
    np.testing.assert_array_equal(weights[f"{IMAGE}class_token"], expected)
    assert actual["encoders"]["image"]["feed_forward"] == "swiglu"
    assert (actual["image_size"], actual["resize"]) == (32, "crop")
    settings = (
        '{"pretrained_cfg": {"input_size": [3, 28, 28], "crop_pct": 0.875, "interpolation": "bicubic"}}'
    )
    (tmp_path / "config.json").write_text(settings)
    actual = read("timm_dinov2", names, tmp_path)[0]
    assert (actual["image_size"], actual["resize"]) == (28, "crop 32")
    (tmp_path / "config.json").write_text(settings.replace("bicubic", "hamming"))
    with pytest.raises(WeightsError, match="interpolation is 'hamming'; there is bicubic, bilinear"):
        read("timm_dinov2", names, tmp_path)


def test_ibot_has_two_networks(dinov2, tmp_path):
    config, ours = dinov2
    image = config["encoders"]["image"] | dict(feed_forward="mlp")
    without = re.compile(r".*(attention_scale|mlp_scale|registers|mlp_gate.*)")
    ours = {path: value for path, value in ours.items() if not without.fullmatch(path)}
    teacher = rules.write(FORMATS["ibot"].rules(config | dict(encoders=dict(image=image))), ours)
    student = {name: value + 1 for name, value in teacher.items()}
    del teacher["masked_embed"]
    whole = {f"student.module.backbone.{name}": value for name, value in student.items()}
    whole |= {f"teacher.backbone.{name}": value for name, value in teacher.items()}
    whole["ibot_loss.center2"] = np.zeros(1)
    plus_one = {path: value + 1 for path, value in ours.items()}
    assert_same(read("ibot", whole, tmp_path, network="student")[1], plus_one)
    del ours[f"{IMAGE}mask_token"]
    assert_same(read("ibot", whole, tmp_path)[1], ours)
    bare = {f"state_dict.{name}": value for name, value in teacher.items()}
    actual, weights = read("ibot", bare, tmp_path)
    assert_same(weights, ours)
    assert actual["encoders"]["image"]["position_resize"] == "dinov2"
    with pytest.raises(WeightsError, match="network is 'student'; the file holds a backbone alone"):
        read("ibot", bare, tmp_path, network="student")
    with pytest.raises(WeightsError, match="network is 'both'; there are teacher, student"):
        read("ibot", bare, tmp_path, network="both")
