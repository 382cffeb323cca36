"""DINOv3 with a gated MLP, from files to features, against what make_goldens.py has written down."""

import json

import numpy as np
import pytest

from big_ssl.models.rotary import rope_periods
from big_ssl.weights import architecture, rules
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import FORMATS, read_checkpoint, write_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests import commands
from tests.parity import goldens

MASK = "blocks.1.attn.qkv.bias_mask"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(ModelConfig, our weights)."""
    folder = goldens.write_checkpoint("hf_dinov3", tmp_path_factory.mktemp("golden"))
    assert guess(folder) == "hf_dinov3"
    return read_checkpoint("hf_dinov3", folder)


@pytest.fixture(scope="module")
def official(checkpoint):
    """The same arrays in DINOv3's own layout."""
    names = rules.write(FORMATS["dinov3"].rules(checkpoint[0]), checkpoint[1])
    mask = np.repeat(np.float32([1, 0, 1]), 16)
    names |= {f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(2)}
    return names | {"rope_embed.periods": rope_periods(8, 100.0)}


@pytest.mark.parametrize("size", ["native", "wide"])
def test_transformers_tokens(size, checkpoint):
    goldens.assert_tokens("hf_dinov3", size, *checkpoint)


def read_official(names, folder, **options):
    write_safetensors(folder / "dinov3.safetensors", names, {})
    return read_checkpoint("dinov3", folder / "dinov3.safetensors", options)


def test_the_official_layout_holds_the_same(checkpoint, official, tmp_path):
    """The biases that are masked are those of the keys, and may be anything."""
    bias = official["blocks.0.attn.qkv.bias"].copy()
    bias[16:32] = 7
    config, ours = read_official(official | {"blocks.0.attn.qkv.bias": bias}, tmp_path)
    assert guess(tmp_path / "dinov3.safetensors") == "dinov3"
    assert ours.keys() == checkpoint[1].keys()
    for path, value in checkpoint[1].items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)
    image, expected = config["encoders"]["image"], checkpoint[0]["encoders"]["image"]
    del image["layer_scale"], image["rope_dtype"]  # only an initial value; not in config.json
    assert image == {key: expected[key] for key in image}
    assert (config["image_size"], config["resize"]) == (224, "stretch bilinear")
    half = {"rope_embed.periods": rope_periods(16, 100.0, "bfloat16")}
    assert read_official(official | half, tmp_path)[0]["encoders"]["image"]["rope_dtype"] == "bfloat16"


def test_the_command_takes_the_base_of_the_positions(official, tmp_path):
    names = official | {"rope_embed.periods": rope_periods(8, 50.0)}
    write_safetensors(tmp_path / "dinov3.safetensors", names, {})
    arguments = (f"--input={tmp_path / 'dinov3.safetensors'}", f"--output={tmp_path / 'out'}")
    done = commands.run("big_ssl.convert", *arguments)
    assert done.returncode == 2
    assert "--model.rope_base gives another" in done.stderr
    done = commands.run("big_ssl.convert", *arguments, "--model.rope_base=50")
    assert (done.returncode, done.stderr) == (0, "")
    assert read_checkpoint("big_ssl", tmp_path / "out")[0]["encoders"]["image"]["rope_base"] == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {MASK: np.ones(48, np.float32)},
            "attn.qkv.bias_mask is not one for queries and values",
        ),
        ({MASK: None}, "attn.qkv.bias_mask is in 1 layers, and not in"),
        ({"rope_embed.periods": rope_periods(8, 50.0)}, "are not of the base 100.0; --model.rope_base gives"),
        (
            {"rope_embed.periods": np.ones(3, np.float32)},
            r"rope_embed.periods is \[3\]; it must have",
        ),
        ({"cls_norm.weight": np.ones(16, np.float32)}, "cls_norm.weight is no weight of this architecture"),
        ({"local_cls_norm.weight": np.ones(16, np.float32), "norm.bias": None}, "norm.bias is missing"),
        ({"blocks.1.mlp.w2.bias": None}, "blocks.1.mlp.w2.bias is missing"),
    ],
)
def test_an_official_file_that_does_not_fit(changes, message, official, tmp_path):
    names = {name: array for name, array in (official | changes).items() if array is not None}
    with pytest.raises(WeightsError, match=message):
        read_official(names, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act is 'gelu'; with use_gated_mlp it is 'silu'"),
        ("key_bias", True, "config.json: key_bias is True; the weights have False"),
        ("num_register_tokens", 0, "config.json: num_register_tokens is 0; the weights have 4"),
        ("use_gated_mlp", None, "config.json: use_gated_mlp is False; the weights have True"),
        ("num_hidden_layers", 3, "config.json: num_hidden_layers is 3; the weights have 2"),
        ("patch_size", [8, 4], r"config.json: patch_size is \[8, 4\]; the weights have 8"),
    ],
)
def test_a_config_that_does_not_fit(key, value, message, tmp_path):
    folder = goldens.write_checkpoint("hf_dinov3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(WeightsError, match=message):
        read_checkpoint("hf_dinov3", folder)


def test_there_and_back_is_bit_identical(checkpoint, tmp_path):
    config, ours = checkpoint
    write_checkpoint("hf_dinov3", tmp_path, config, ours)
    again, found = read_checkpoint("hf_dinov3", tmp_path)
    assert found.keys() == ours.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(found[path], value)
    assert architecture.with_defaults(again) == architecture.with_defaults(config)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("hf_dinov3", dict(rope_dtype="bfloat16"), "image.rope_dtype is 'bfloat16'; a DINOv3ViTModel has"),
        ("hf_dinov3", dict(rope_side=4), "image.rope_side is 4; a DINOv3ViTModel has None"),
        ("hf_dinov3", dict(rope_base=None), "image.rope_base is None; a DINOv3ViTModel has one"),
        ("hf_dinov2", {}, "image.qkv_bias is 'qv'; a Dinov2WithRegistersModel has 'qkv'"),
        ("hf_dinov2", dict(qkv_bias="qkv"), "image.rope_base is 100.0; a Dinov2WithRegistersModel has None"),
    ],
)
def test_what_another_format_has_no_place_for_is_not_written(kind, changes, message, checkpoint, tmp_path):
    """Without the check, a file without positions would be written."""
    config, ours = checkpoint
    image = config["encoders"]["image"] | changes
    with pytest.raises(WeightsError, match=message):
        write_checkpoint(kind, tmp_path / "out", config | dict(encoders=dict(image=image)), ours)
    assert not (tmp_path / "out").exists()
