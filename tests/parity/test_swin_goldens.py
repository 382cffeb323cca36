"""Swin, Swin V2 and CoSwin, from file to features, against what make_goldens.py has written down."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import big_ssl
from big_ssl.models.swin import Swin
from big_ssl.weights import architecture
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import read_tensors, write_safetensors
from tests import compiling
from tests.parity import goldens

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
KINDS = ("hf_swin", "hf_swinv2")


def check(module, variables, kind):
    expected = goldens.golden(kind)[1]
    with compiling.quickly():
        result = jax.jit(module.apply)(variables, expected["images"])
    assert [x.shape[-1] for x in result["pyramid"]] == [8, 16]
    for i, ours in enumerate(result["pyramid"]):
        scale = expected[f"map{i}"].std()
        np.testing.assert_allclose(ours / scale, expected[f"map{i}"] / scale, **CLOSE)
    np.testing.assert_allclose(result["patches"], expected["tokens"], **CLOSE)
    np.testing.assert_allclose(result["pooled"], expected["tokens"].mean(1), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_maps_and_tokens(kind, tmp_path):
    config, ours = read_checkpoint(kind, goldens.write_checkpoint(kind, tmp_path))
    module = architecture.modules(config).image
    check(module, architecture.encoder_variables(unflatten_dict(ours, sep="/"), "image"), kind)


def test_coswins_maps_and_tokens():
    module = Swin(width=8, depths=(2, 2), heads=(1, 2), window=2, mlp_ratio=2.0, embedding="conv")
    check(module, dict(params=unflatten_dict(goldens.golden("coswin")[0], sep="/")), "coswin")


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_embeds_images(kind, tmp_path):
    config, ours = read_checkpoint(kind, goldens.write_checkpoint(kind, tmp_path / "in"))
    write_checkpoint("big_ssl", tmp_path / "out", config, ours)
    model = big_ssl.load(tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)
    assert model.encode_image(images).shape == (2, 16)
    assert model.patch_features(images, resize=False).shape == (2, 5 * 4, 16)
    assert (model.config["image_size"], model.config["resize"]) == (32, "stretch")
    with pytest.raises(ValueError, match="no transformer layers: its image encoder is Swin"):
        model.intermediate_layers(images)


def test_there_and_back_is_bit_identical(tmp_path):
    config, ours = read_checkpoint("hf_swin", goldens.write_checkpoint("hf_swin", tmp_path / "in"))
    write_checkpoint("hf_swin", tmp_path / "out", config, ours)
    written, expected = read_tensors(tmp_path / "out" / "model.safetensors"), goldens.golden("hf_swin")[0]
    assert set(written) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    again, _ = read_checkpoint(guess(tmp_path / "out"), tmp_path / "out")
    assert again["encoders"] == config["encoders"]
    assert (again["image_size"], again["resize"]) == (config["image_size"], config["resize"])
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads(str(goldens.golden("hf_swin")[1]["config"]))
    keys = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "image_size", "hidden_size")
    assert {key: described[key] for key in keys} == {key: theirs[key] for key in keys}


NEW_NAMES = (
    ("attention.self.query", "attention.q_proj"),
    ("attention.self.key", "attention.k_proj"),
    ("attention.self.value", "attention.v_proj"),
    ("attention.self.relative", "attention.relative_position_bias.relative"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def test_the_names_of_transformers_five_and_a_classifiers_prefix(tmp_path):
    """With the buffers that older files have."""
    _, expected = read_checkpoint("hf_swin", goldens.write_checkpoint("hf_swin", tmp_path))
    renamed = {}
    for name, value in goldens.golden("hf_swin")[0].items():
        for old, new in NEW_NAMES:
            name = name.replace(old, new)
        renamed[f"swin.{name}"] = value
    assert not any("attention.self" in name for name in renamed)
    renamed["classifier.weight"] = np.zeros((3, 16), np.float32)
    index = "swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_index"
    write_safetensors(tmp_path / "model.safetensors", renamed | {index: np.zeros((4, 4))}, {})
    _, ours = read_checkpoint("hf_swin", tmp_path)
    assert ours.keys() == expected.keys()
    assert all(np.array_equal(ours[path], expected[path]) for path in expected)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("hf_swin", dict(depths=[2, 4]), r"config.json: depths is \[2, 4\]; the weights have \[2, 2\]"),
        ("hf_swin", dict(window_size=7), "config.json: window_size is 7; the weights have 2"),
        ("hf_swin", dict(layer_norm_eps=1e-6), "config.json: layer_norm_eps is 1e-06; only 1e-05 is read"),
        (
            "hf_swin",
            dict(use_absolute_embeddings=True),
            "use_absolute_embeddings is True; only False",
        ),
        ("hf_swin", dict(hidden_act="swish"), "config.json: hidden_act 'swish' is not known"),
        ("hf_swinv2", dict(num_heads=[2, 2]), r"num_heads is \[2, 2\]; the weights have \[1, 2\]"),
        ("hf_swinv2", dict(patch_size=8), "config.json: patch_size is 8; only 4 is read"),
    ],
)
def test_a_config_that_does_not_fit(kind, changes, message, tmp_path):
    goldens.write_checkpoint(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(kind, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(version=2), "hf_swin: image.version is 2; a SwinModel has 1"),
        (dict(embedding="conv"), "hf_swin: image.embedding is 'conv'; a SwinModel has 'patch'"),
        (dict(window=[2, 1]), r"hf_swin: image.window is \[2, 1\]; a SwinModel has one for all stages"),
        (dict(kind="vit", width=24, heads=3), "hf_swin: image.kind is 'vit'; a SwinModel has 'swin'"),
    ],
)
def test_what_a_swin_model_has_no_place_for(changes, message, tmp_path):
    config, ours = read_checkpoint("hf_swin", goldens.write_checkpoint("hf_swin", tmp_path / "in"))
    image = config["encoders"]["image"] | changes
    if image["kind"] == "vit":
        image = changes
    with pytest.raises(WeightsError, match=message):
        write_checkpoint("hf_swin", tmp_path / "out", config | dict(encoders=dict(image=image)), ours)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_and_an_unknown_weight(kind, tmp_path):
    name = "encoder.layers.1.blocks.1.layernorm_after.weight"
    for changes, message in (
        ({name: None}, f"{name} is missing"),
        ({"encoder.extra": np.zeros(1)}, "encoder.extra is no weight of this architecture"),
    ):
        path = goldens.write_checkpoint(kind, tmp_path, **changes)
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(kind, path)


@pytest.mark.parametrize("kind", [*KINDS, "coswin"])
def test_no_weight_of_a_golden_file_is_a_default(kind):
    """Zeros and ones would hide what a mapping forgets."""
    for key, value in goldens.golden(kind)[0].items():
        assert value.size == 1 or value.std() > 0.02, key
        assert not np.isin(value, (0, 1)).any(), key
