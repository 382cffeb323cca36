"""transformers' ALIGN: its JSON files, and the errors in them."""

import json

import numpy as np
import pytest

from big_ssl.inference import read
from big_ssl.models import efficientnet, encoders
from big_ssl.weights import architecture
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from tests.parity import goldens

# As published: x / 127.5 - 1, by an offset; the mean and standard deviation are then ignored.
PUBLISHED = dict(
    size=dict(height=346, width=346),
    crop_size=dict(height=289, width=289),
    do_center_crop=True,
    resample=2,
    rescale_factor=1 / 127.5,
    rescale_offset=True,
    do_normalize=False,
    include_top=False,
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
)


@pytest.fixture(scope="module")
def align(tmp_path_factory):
    """(ModelConfig, weights) of the golden file."""
    return read_checkpoint("hf_align", goldens.write_checkpoint("hf_align", tmp_path_factory.mktemp("align")))


def written(tmp_path, **changes):
    """A folder with the golden weights and a config.json; changes: {"part__key": value}."""
    path = goldens.write_checkpoint("hf_align", tmp_path)
    config = json.loads((path / "config.json").read_text())
    for key, value in changes.items():
        part, key = key.split("__")
        config[part][key] = value
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_architecture(align):
    config = align[0]
    image = dict(kind="efficientnet", width=0.2, depth=0.25, strides=(2, 2, 2, 1, 1, 2, 1))
    assert config["encoders"]["image"] == image | dict(padding="fixed", drop_connect=0.2)
    text = dict(kind="bert", vocab_size=50, width=16, depth=2, heads=2, mlp_dim=40, max_len=12, dropout=0.1)
    assert config["encoders"]["text"] == text
    assert config["tokenizer"] == dict(kind="wordpiece", vocabulary="", size=50, length=12)
    assert (config["image_size"], config["resize"]) == (75, "stretch 346 bilinear floor")


def test_the_text_encoder_keeps_more_positions_than_the_tokenizers_length(align):
    tower = encoders.build(align[0]["encoders"]["text"], "float32", vocab_size=50, text_length=7)
    assert tower.max_len == 12


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, 0.5, 0.5),
        (dict(do_normalize=True, image_mean=[0.1] * 3, image_std=[0.4] * 3), 0.55, 0.2),
        (dict(rescale_factor=1 / 255, rescale_offset=False), 0.0, 1.0),
        (
            dict(rescale_factor=1 / 255, rescale_offset=False, do_normalize=True, image_mean=[0.3] * 3),
            0.3,
            (0.229, 0.224, 0.225),
        ),
    ],
)
def test_the_preprocessing(changes, mean, std, tmp_path):
    path = written(tmp_path)
    (path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED | changes))
    config, _ = read_checkpoint("hf_align", path)
    assert (config["image_size"], config["resize"]) == (289, "stretch 346 bilinear floor")
    view = config["views"]["image"]
    np.testing.assert_allclose(view["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(view["std"], std, rtol=1e-12)


def test_a_round_trip_is_exact(align, tmp_path):
    write_checkpoint("hf_align", tmp_path, *align)
    config, ours = read_checkpoint("hf_align", tmp_path)
    assert config["encoders"] == align[0]["encoders"] | dict(image=dict(align[0]["encoders"]["image"]))
    for key in ("head", "tokenizer", "image_size", "resize"):
        assert config[key] == align[0][key]
    assert ours.keys() == align[1].keys()
    preprocessor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert preprocessor["image_processor_type"] == "EfficientNetImageProcessor"
    assert not preprocessor["include_top"]  # which would divide by the deviation again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(vision_config__depthwise_padding=[5]),
            r"vision_config.depthwise_padding is \[5\]; only \[\] is known",
        ),
        (dict(vision_config__kernel_sizes=[3] * 7), r"depthwise_conv.weight is \[.*\]; the architecture has"),
        (dict(vision_config__kernel_sizes=[3, 3, 5, 4, 5, 5, 3]), r"kernel_sizes\[3\] is 4; it must be odd"),
        (dict(vision_config__strides=[2, 2, 3, 1, 1, 2, 1]), r"strides\[2\] is 3; it must be 1 or 2"),
        (dict(vision_config__strides=[2, 2.5] * 3), "strides is .*; it must be a whole number from 1"),
        (dict(vision_config__num_block_repeats=[1] * 6), "num_block_repeats, .* must be lists of one length"),
        (dict(vision_config__num_block_repeats=5), "num_block_repeats, .* must be lists of one length"),
        (
            dict(vision_config__expand_ratios=[2] * 7),
            r"weight is \[8, 1, 3, 3\]; the architecture has \[16, 1",
        ),
        (
            dict(vision_config__in_channels=[32, 99, 24, 40, 80, 112, 192]),
            r"in_channels\[1\] is 99; it must be 16",
        ),
        (
            dict(vision_config__num_block_repeats=[9, 2, 2, 3, 3, 4, 1]),
            "num_block_repeats, times its depth_coefficient, are 9 blocks; the weights have 7",
        ),
        (dict(vision_config__pooling_type="max"), "pooling_type is 'max'; only 'mean' is known"),
        (dict(text_config__hidden_act="relu"), "text_config.hidden_act is 'relu'; only 'gelu' is known"),
        (dict(vision_config__strides=[1, 2, 2, 1, 1, 2, 1]), "stage 0 keeps stride 1 and 8 channels"),
        (
            dict(vision_config__depth_coefficient=1.0),
            "num_block_repeats, times its depth_coefficient, are 16 blocks; the weights have 7",
        ),
        (dict(vision_config__width_coefficient=0.5), "embed_dim is 64 but the image encoder gives 160"),
    ],
)
def test_the_error_names_an_unsupported_setting(changes, message, tmp_path):
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint("hf_align", written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("image", dict(padding="same"), "image.padding is 'same'; a AlignModel has 'fixed'"),
        ("image", dict(stem_stride=1), "image.stem_stride is 1"),
        ("image", dict(strides=(1, 2, 2, 1, 1, 2, 1)), "stage 0 keeps stride 1 and 8 channels"),
        ("head", dict(temperature_form="log"), "head.temperature_form is 'log'"),
        ("head", dict(text_projection_bias=False), "head.text_projection_bias is False"),
    ],
)
def test_a_model_that_the_format_cannot_store_is_not_written(part, changes, message, align, tmp_path):
    config, ours = align
    place = config if part == "head" else config["encoders"]
    changed = {part: place[part] | changes}
    config = config | (changed if part == "head" else dict(encoders=place | changed))
    with pytest.raises(WeightsError, match=message):
        write_checkpoint("hf_align", tmp_path / "out", config, ours)
    assert not (tmp_path / "out").exists()


def test_align_as_clip_and_clip_as_align_are_errors(align, tmp_path):
    with pytest.raises(WeightsError, match="hf_clip holds a vit and a text_transformer, not efficientnet"):
        write_checkpoint("hf_clip", tmp_path / "out", *align)
    clip = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "clip"))
    with pytest.raises(WeightsError, match="hf_align holds an efficientnet and a bert, not vit"):
        write_checkpoint("hf_align", tmp_path / "out", *clip)
    with pytest.raises(WeightsError, match="model_type is 'clip'; it must be align"):
        read_checkpoint("hf_align", tmp_path / "clip")


def test_with_defaults_fills_in_an_efficientnets_options(align):
    image = architecture.with_defaults(align[0])["encoders"]["image"]
    assert (image["stem_stride"], image["bn_momentum"], image["scan"]) == (2, 0.99, False)
    assert "stages" not in image
    assert encoders.build(image, "float32", 0, 0) == architecture.modules(align[0]).image


def test_a_vocabulary_beside_the_weights_is_used(tmp_path):
    path = written(tmp_path)
    (path / "vocab.txt").write_text("[PAD]\n")
    assert read(path, "hf_align")[0]["tokenizer"]["vocabulary"] == str(path / "vocab.txt")


def test_other_stages_than_the_published_ones_round_trip(tmp_path):
    """Two stages whose repeats are other numbers, for the same seven blocks of the golden file."""
    stages = [efficientnet.Stage(*row) for row in efficientnet.B0_STAGES]
    repeats = [4, *(stage.repeats for stage in stages[1:])]
    path = written(tmp_path / "in", vision_config__num_block_repeats=repeats)
    config, ours = read_checkpoint("hf_align", path)
    image = config["encoders"]["image"]
    assert "strides" not in image
    assert [stage[2] for stage in image["stages"]] == repeats
    for kind in ("big_ssl", "hf_align"):
        write_checkpoint(kind, tmp_path / kind, config, ours)
        again, back = read_checkpoint(kind, tmp_path / kind)
        assert list(map(tuple, again["encoders"]["image"]["stages"])) == list(image["stages"])
        assert all(np.array_equal(back[name], ours[name]) for name in ours)
    written_config = json.loads((tmp_path / "hf_align" / "config.json").read_text())["vision_config"]
    assert written_config["num_block_repeats"] == repeats
    assert written_config["strides"] == [2, 2, 2, 1, 1, 2, 1]
