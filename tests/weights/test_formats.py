"""Invalid checkpoints: one-line errors with the file and the offender. Round trips."""

import json

import numpy as np
import pytest

from big_ssl.weights import open_clip
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import FORMATS, read_checkpoint, write_checkpoint
from big_ssl.weights.tensor_files import write_safetensors
from tests.parity import goldens

HF_NAME = "vision_model.encoder.layers.1.mlp.fc1.bias"


def failure(kind, path, options=None):
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(kind, path, options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({HF_NAME: None}, f"{HF_NAME} is missing"),
        ({HF_NAME: np.zeros(41, np.float32)}, f"{HF_NAME} is [41]; the architecture has [40]"),
        ({HF_NAME: np.zeros(40, np.int32)}, f"{HF_NAME} is of dtype int32; weights are floating point"),
        ({"vision_model.extra": np.zeros(1)}, "vision_model.extra is no weight of this architecture"),
        ({"text_projection.weight": np.zeros(3)}, "text_projection.weight is [3]; it must have 2 axes"),
        (
            {"vision_model.embeddings.position_embedding.weight": np.zeros((9, 24), np.float32)},
            "vision_model.embeddings.position_embedding.weight has 8 positions, which is no square number",
        ),
    ],
)
def test_the_error_names_a_weight_that_does_not_fit(changes, message, tmp_path):
    path = goldens.write_checkpoint("hf_clip", tmp_path, **changes)
    assert failure("hf_clip", path) == f"{tmp_path}/model.safetensors, as hf_clip: {message}"


def test_older_files_with_buffers_are_read(tmp_path):
    buffer = {"text_model.embeddings.position_ids": np.arange(9)[None]}
    read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path, **buffer))


@pytest.mark.parametrize(
    ("written", "kind", "missing"),
    [
        ("hf_clip", "openai_clip", "token_embedding.weight"),
        ("hf_clip", "siglip_npz", "txt/Embed_0/embedding"),
        ("clip_resnet", "siglip_npz", "txt/Embed_0/embedding"),
    ],
)
def test_a_checkpoint_of_another_format_is_an_error(written, kind, missing, tmp_path):
    goldens.write_checkpoint(written, tmp_path)
    message = failure(kind, tmp_path / "model.safetensors")
    assert f"as {kind}: {missing} is missing; is it another format? there is " in message


@pytest.mark.parametrize(("written", "kind"), [("hf_clip", "hf_siglip"), ("hf_siglip", "hf_clip")])
def test_clip_read_as_siglip_and_vice_versa_is_an_error(written, kind, tmp_path):
    assert "is" in failure(kind, goldens.write_checkpoint(written, tmp_path))


def test_errors_in_the_json_files(tmp_path):
    goldens.write_checkpoint("hf_clip", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "swish"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "config.json: hidden_act 'swish'; there are quick_gelu, gelu" in failure("hf_clip", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is no JSON" in failure("hf_clip", tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json is missing beside the weights" in failure("hf_clip", tmp_path)
    assert "open_clip_config.json is missing" in failure("open_clip", tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dict(model_cfg=dict(vision_cfg=dict(timm_model_name="x"))),
            "vision_cfg.timm_model_name is 'x'; only a plain CLIP is read, with None",
        ),
        (
            dict(model_cfg=dict(text_cfg=dict(hf_model_name="x"))),
            "text_cfg.hf_model_name is 'x'; only a plain CLIP is read, with None",
        ),
        (
            dict(model_cfg=dict(multimodal_cfg={})),
            "model_cfg.multimodal_cfg is {}, which we do not know; --model.accept=multimodal_cfg ignores",
        ),
        (
            dict(preprocess_cfg=dict(interpolation="nearest")),
            "interpolation is 'nearest'; there is bicubic, bilinear, random",
        ),
    ],
)
def test_open_clip_models_other_than_plain_clip_are_errors(config, message, tmp_path):
    path = goldens.write_checkpoint("clip_resnet", tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert message in failure("open_clip", path, dict(text_num_heads=2))


def test_errors_in_options(tmp_path):
    path = goldens.write_checkpoint("clip_resnet", tmp_path)
    assert "openai_clip takes no option image_size; there is num_heads, text_num_heads" in failure(
        "openai_clip", path, dict(image_size=3)
    )
    assert "a ResNet's attention pool always has width / 2" in failure("openai_clip", path, dict(num_heads=3))
    assert "3 heads do not divide a width of 16" in failure("openai_clip", path, dict(text_num_heads=3))


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"as hf_clip, there is none of model\.safetensors"):
        read_checkpoint("hf_clip", tmp_path)
    with pytest.raises(FileNotFoundError, match="as openai_clip, give the weights' own file"):
        read_checkpoint("openai_clip", tmp_path)


def test_a_model_that_a_format_cannot_store_is_not_written(tmp_path):
    siglip = read_checkpoint("hf_siglip", goldens.write_checkpoint("hf_siglip", tmp_path / "siglip"))
    resnet = read_checkpoint("openai_clip", goldens.write_checkpoint("clip_resnet", tmp_path / "resnet"))
    for model, kind, message in (
        (siglip, "hf_clip", "hf_clip: image.class_token is False; a CLIPModel has True"),
        (siglip, "open_clip", "open_clip: image.class_token is False; a CLIP has True"),
        (siglip, "hf_siglip", "hf_siglip can only be read; writable formats: big_ssl, open_clip, hf_clip"),
        (resnet, "hf_clip", "hf_clip holds a vit and a text_transformer, not resnet and text_transformer"),
    ):
        with pytest.raises(WeightsError, match=message):
            write_checkpoint(kind, tmp_path / "out", *model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["hf_clip", "open_clip", "big_ssl"])
def test_a_round_trip_is_bit_identical(kind, tmp_path):
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    write_checkpoint(kind, tmp_path / "out", config, ours)
    again, actual = read_checkpoint(kind, tmp_path / "out")
    assert actual.keys() == ours.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(actual[path], value)
    assert again["image_size"] == config["image_size"]
    # open_clip resizes positions in its own way, for images of another size.
    resize = again["encoders"]["image"].pop("position_resize")
    assert resize == ("bicubic_antialias" if kind == "open_clip" else "bicubic")
    del config["encoders"]["image"]["position_resize"]
    for name, encoder in config["encoders"].items():
        assert {key: again["encoders"][name][key] for key in encoder if key != "eot_id"} == {
            key: value for key, value in encoder.items() if key != "eot_id"
        }


def test_our_format_without_a_models_config_is_an_error(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", dict(x=np.zeros(1, np.float32)), {})
    assert "config.json is missing" in failure("big_ssl", tmp_path)
    (tmp_path / "config.json").write_text('{"encoders": {"image": {"kind": "vit"}}}')
    assert "config.json does not describe a model: 'tokenizer'" in failure("big_ssl", tmp_path)


def test_the_writable_formats():
    for name, format_ in FORMATS.items():
        written = (
            "big_ssl",
            "open_clip",
            "hf_clip",
            "hf_align",
            "hf_dinov2",
            "hf_dinov3",
            "hf_vit",
            "hf_swin",
        )
        assert bool(format_.describe) == (name in written)


def test_a_resize_larger_than_the_crop_is_exported(tmp_path):
    """HF CLIP stores both sizes."""
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    assert config["resize"] == "crop floor"
    for resize, size in (
        ("crop floor", dict(shortest_edge=24)),
        ("crop 30 floor", dict(shortest_edge=30)),
        ("stretch 30 bilinear floor", dict(height=30, width=30)),
    ):
        write_checkpoint("hf_clip", tmp_path / "out", config | dict(resize=resize), ours)
        written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert written["size"] == size
        assert written["crop_size"] == dict(height=24, width=24)
        again, _ = read_checkpoint("hf_clip", tmp_path / "out")
        assert again["resize"] == resize


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "hf_clip",
            dict(vision_config=dict(num_hidden_layers=3)),
            "vision_config.num_hidden_layers is 3",
        ),
        ("hf_clip", dict(text_config=dict(vocab_size=7)), "text_config.vocab_size is 7; the weights have"),
        ("hf_clip", dict(text_config=dict(hidden_size=7)), "text_config.hidden_size is 7; the weights have"),
        (
            "hf_clip",
            dict(vision_config=dict(image_size=7)),
            "vision_config.image_size is 7; the weights have",
        ),
        ("hf_clip", dict(vision_config=dict(num_attention_heads=5)), "num_attention_heads 5 does not divide"),
        # transformers then takes the class's defaults for the rest.
        ("hf_clip", dict(vision_config_dict=dict(patch_size=8)), "vision_config.hidden_size is 768; the"),
        ("hf_clip", dict(projection_dim=7), "config.json: projection_dim is 7; the weights have"),
        ("hf_dinov2", dict(use_swiglu_ffn=False), "config.json: use_swiglu_ffn is False; the weights have"),
        ("hf_siglip", dict(text_config=dict(num_hidden_layers=3)), "text_config.num_hidden_layers is 3"),
        ("hf_align", dict(text_config=dict(num_hidden_layers=3)), "text_config.num_hidden_layers is 3"),
        ("hf_dinov2", dict(num_hidden_layers=3), "config.json: num_hidden_layers is 3; the weights have"),
        ("hf_dinov2", dict(image_size=7), "config.json: image_size is 7; the weights have"),
    ],
)
def test_a_config_that_the_arrays_contradict_is_refused(kind, changes, message, tmp_path):
    """As where the last layers of a checkpoint are missing."""
    goldens.write_checkpoint(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in changes.items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert message in failure(kind, tmp_path)


def test_layers_that_a_config_leaves_to_the_default_are_counted_too(tmp_path):
    goldens.write_checkpoint("hf_clip", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["vision_config"]["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "vision_config.num_hidden_layers is 12; the weights have" in failure("hf_clip", tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_unless_accepted(value, tmp_path):
    bias = np.full(40, value, np.float32)
    path = goldens.write_checkpoint("hf_clip", tmp_path, **{HF_NAME: bias})
    assert "encoders/image/layer1/mlp_in/bias has values that are not finite" in failure("hf_clip", path)
    _, ours = read_checkpoint("hf_clip", path, dict(non_finite=True))
    np.testing.assert_array_equal(ours["params/encoders/image/layer1/mlp_in/bias"], bias)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "state_dict.model."])
def test_wrappers_around_a_model_are_taken_off(prefix, tmp_path):
    tensors, _ = goldens.golden("hf_clip")
    goldens.write_checkpoint("hf_clip", tmp_path)
    expected = read_checkpoint("hf_clip", tmp_path)[1]
    wrapped = {prefix + name: np.asarray(array) for name, array in tensors.items()}
    wrapped |= {"optimizer.state.0.exp_avg": np.zeros(3, np.float32)}
    write_safetensors(tmp_path / "model.safetensors", wrapped, {})
    actual = read_checkpoint("hf_clip", tmp_path)[1]
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[path], expected[path]) for path in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(text_cfg=dict(layers=7)), "text_cfg.layers is 7; the weights have"),
        (dict(text_cfg=dict(context_length=7)), "text_cfg.context_length is 7; the weights have"),
        (dict(vision_cfg=dict(patch_size=[4, 5])), "vision_cfg.patch_size is [4, 5]; it must be one side"),
        (dict(vision_cfg=dict(mlp_ratio=7)), "vision_cfg.mlp_width is"),
        (dict(vision_cfg=dict(no_ln_pre=True)), "vision_cfg.no_ln_pre is True; only a plain CLIP is read"),
        (dict(vision_cfg=dict(new_key=1)), "vision_cfg.new_key is 1, which we do not know"),
    ],
)
def test_open_clips_config_is_compared_with_the_arrays(changes, message, tmp_path):
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    for encoder in config["encoders"].values():
        encoder["activation"] = "gelu"
    write_checkpoint("open_clip", tmp_path / "out", config, ours)
    file = tmp_path / "out" / "open_clip_config.json"
    written = json.loads(file.read_text())
    for part, values in changes.items():
        written["model_cfg"][part] |= values
    file.write_text(json.dumps(written))
    assert message in failure("open_clip", tmp_path / "out")


def test_open_clips_defaults_stand_for_what_its_config_leaves_out(tmp_path):
    """Eight heads and not the width over 64; the shorter side resized; CLIP's mean."""
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    config["head"]["logit_bias"] = -10.0
    ours = ours | {"params/heads/contrastive/logit_bias": np.float32(-3)}
    write_checkpoint("open_clip", tmp_path / "out", config, ours)
    file = tmp_path / "out" / "open_clip_config.json"
    written = json.loads(file.read_text())
    del written["model_cfg"]["text_cfg"]["heads"], written["preprocess_cfg"]
    file.write_text(json.dumps(written))
    again, weights = read_checkpoint("open_clip", tmp_path / "out")
    assert again["encoders"]["text"]["heads"] == 8
    assert again["resize"] == "crop"
    assert again["head"]["logit_bias"] == -10.0
    assert weights["params/heads/contrastive/logit_bias"] == -3


@pytest.mark.parametrize(("width", "mlp_dim"), [(1152, 4304), (24, 41), (49, 169), (7, 23)])
def test_a_feed_forwards_width_survives_open_clips_ratio(width, mlp_dim):
    ratio = open_clip._mlp_ratio(dict(width=width, mlp_dim=mlp_dim)).get("mlp_ratio", 4)
    assert int(width * ratio) == mlp_dim


def test_an_image_need_not_be_whole_patches(tmp_path):
    """As So400m/14 at 384 pixels; a size may be a list, and null stands for a default."""
    goldens.write_checkpoint("hf_clip", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    vision = config["vision_config"]
    vision |= dict(image_size=[vision["image_size"] + 3] * 2, layer_norm_eps=None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, _ = read_checkpoint("hf_clip", tmp_path)
    assert ours["image_size"] == vision["image_size"][0]
    assert ours["encoders"]["image"]["epsilon"] == 1e-5


def test_an_end_of_text_that_transformers_would_not_find_is_not_exported(tmp_path):
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    config["encoders"]["text"]["eot_id"] = 2
    with pytest.raises(WeightsError, match=r"text\.eot_id is 2, which a CLIPModel takes for a mistake"):
        write_checkpoint("hf_clip", tmp_path / "out", config, ours)


def test_open_clip_refuses_a_text_that_ends_elsewhere(tmp_path):
    """It reads the features of the largest id."""
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    config["encoders"]["text"]["eot_id"] = 5
    with pytest.raises(WeightsError, match=r"open_clip: text\.eot_id is 5; .* of the largest id, 49"):
        write_checkpoint("open_clip", tmp_path / "out", config, ours)
    config["encoders"]["text"]["eot_id"] = None
    config["tokenizer"]["kind"] = "sentencepiece_xlm"
    with pytest.raises(WeightsError, match=r"tokenizer\.kind is 'sentencepiece_xlm'; .* 'clip_bpe'"):
        write_checkpoint("open_clip", tmp_path / "out", config, ours)


@pytest.mark.parametrize(
    ("accept", "resize"),
    [("pad_size", "crop 32 floor"), (["pad_size"], "crop 32 floor"), ("pad_size,size", "crop 224 floor")],
)
def test_accept_is_whole_keys(accept, resize, tmp_path):
    settings = dict(image_processor_type="CLIPImageProcessor", size=32, crop_size=24, pad_size=30)
    goldens.write_checkpoint("hf_clip", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_checkpoint("hf_clip", tmp_path, dict(accept=accept))[0]["resize"] == resize
    assert "pad_size is 30, which we do not know" in failure("hf_clip", tmp_path, dict(accept=None))


def test_an_unknown_format_is_an_error(tmp_path):
    assert failure("hf_clop", tmp_path).startswith("there is no format 'hf_clop'; there are big_ssl, openai_")


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("hf_clip", "vision_config"),
        ("hf_siglip", "vision_config"),
        ("hf_align", "vision_config"),
        ("hf_dinov2", ""),
        ("hf_dinov3", ""),
        ("hf_swin", ""),
        ("hf_swinv2", ""),
        ("hf_tipsv2", ""),
    ],
)
def test_the_channels_of_a_config_are_compared_with_the_kernel(kind, part, tmp_path):
    goldens.write_checkpoint(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config[part] if part else config)["num_channels"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "num_channels is 4; the weights have 3" in failure(kind, tmp_path)
