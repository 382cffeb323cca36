"""A TIPSv2 image tower, from files to features, against what make_goldens.py has written down."""

import json

import numpy as np
import pytest

from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.guess import guess
from tests.parity import goldens


@pytest.mark.parametrize("size", ["native", "wide"])
def test_transformers_tokens(size, tmp_path):
    folder = goldens.write_checkpoint("hf_tipsv2", tmp_path)
    assert guess(folder) == "hf_tipsv2"
    config, ours = read_checkpoint("hf_tipsv2", folder)
    goldens.assert_tokens("hf_tipsv2", size, config, ours)
    assert (config["image_size"], config["resize"]) == (448, "stretch bilinear")
    assert config["views"]["image"] == dict(mean=(0.0,) * 3, std=(1.0,) * 3, flip=False)


def test_the_image_tower_of_a_whole_model(tmp_path):
    """Its text tower and temperature are left out; the processor may be stated."""
    weights, arrays = goldens.golden("hf_tipsv2")
    names = {f"vision_encoder.{name}": array for name, array in weights.items()}
    names |= {"text_encoder.ln_final.bias": np.ones(3, np.float32), "temperature": np.ones(1, np.float32)}
    folder = goldens.write_checkpoint("hf_tipsv2", tmp_path, **names, **dict.fromkeys(weights))
    vision = json.loads(str(arrays["config"]))
    (folder / "config.json").write_text(json.dumps(dict(model_type="tipsv2", vision_config=vision)))
    processor = dict(image_processor_type="Tipsv2ImageProcessor", size=dict(height=32, width=32))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert guess(folder) == "hf_tipsv2"
    config, ours = read_checkpoint("hf_tipsv2", folder)
    goldens.assert_tokens("hf_tipsv2", "wide", config, ours)
    assert (config["image_size"], config["resize"]) == (32, "stretch bilinear")
    np.testing.assert_allclose(config["views"]["image"]["mean"], 0)
    np.testing.assert_allclose(config["views"]["image"]["std"], 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_register_tokens", 2, "config.json: num_register_tokens is 2; the weights have 1"),
        ("num_hidden_layers", 3, "config.json: num_hidden_layers is 3; the weights have 2"),
        ("qkv_bias", False, "config.json: qkv_bias is False; the weights have True"),
        ("mlp_ratio", 4, "config.json: mlp_ratio is 4; the weights have 2.5"),
        ("image_size", 40, "config.json: image_size is 40; the weights have 32"),
        ("use_swiglu_ffn", True, "config.json: use_swiglu_ffn is True; the weights have False"),
    ],
)
def test_a_config_that_does_not_fit(key, value, message, tmp_path):
    folder = goldens.write_checkpoint("hf_tipsv2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(WeightsError, match=message):
        read_checkpoint("hf_tipsv2", folder)
