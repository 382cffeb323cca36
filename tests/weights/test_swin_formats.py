"""Variants of Swin's, timm's and UniCL's files; their numbers are checked in tests/parity."""

import json
import math

import numpy as np
import pytest

from big_ssl.models import text_transformer
from big_ssl.weights import architecture, rules, swin, swin_layers
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import clip_config
from big_ssl.weights.formats import FORMATS, read_checkpoint, write_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests.parity import goldens

COORDS = "attn.relative_coords_table"


@pytest.fixture(scope="module", params=["hf_swin", "hf_swinv2"])
def model(request, tmp_path_factory):
    """(ModelConfig, our weights) of a Swin, and of a Swin V2, with windows of 2."""
    kind = request.param
    return read_checkpoint(kind, goldens.write_checkpoint(kind, tmp_path_factory.mktemp("golden")))


def official(model):
    """Their names, with the buffers of Microsoft's code."""
    names = rules.write(swin.rules(model[0]), model[1])
    for name in list(names):
        if name.endswith("attn.proj.weight"):
            block = name.removesuffix("attn.proj.weight")
            names[f"{block}attn.relative_position_index"] = np.zeros((4, 4), np.int64)
            if model[0]["encoders"]["image"]["version"] == 2:
                names[f"{block}{COORDS}"] = np.full((1, 3, 3, 2), math.log(1 + 8, 8), np.float32)
    return names


def read(kind, names, folder, described=None):
    write_safetensors(folder / "model.safetensors", names, {})
    if described is not None:
        (folder / "config.json").write_text(json.dumps(described))
    return read_checkpoint(kind, folder / "model.safetensors")


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value)


def without_windows(config):
    """The encoder's options that a file of either version states."""
    left_out = ("window", "pretrained_window", "activation")
    return {key: value for key, value in config["encoders"]["image"].items() if key not in left_out}


def test_microsofts_files(model, tmp_path):
    config, weights = read("swin", official(model), tmp_path)
    assert_same(weights, model[1])
    assert without_windows(config) == without_windows(model[0])
    assert config["encoders"]["image"]["window"] == 2
    assert guess(tmp_path / "model.safetensors") == "swin"
    assert (config["image_size"], config["resize"]) == (16, "crop 18")
    if config["encoders"]["image"]["version"] == 2:
        assert config["encoders"]["image"]["pretrained_window"] == 2
    wrapped = {f"encoder.{name}": value for name, value in official(model).items()}
    wrapped["decoder.0.weight"] = np.zeros((3, 16, 1, 1), np.float32)
    assert_same(read("swin", wrapped, tmp_path)[1], model[1])  # SimMIM's
    mask = {"layers.0.blocks.1.attn_mask": np.zeros((25, 4, 4), np.float32)}
    assert read("swin", official(model) | mask, tmp_path)[0]["image_size"] == 4 * 2 * 5


def test_timms_files(model, tmp_path):
    """A merging belongs to the stage after it; a classifier is left out."""
    names = {name: x for name, x in official(model).items() if "relative_" not in name or "_bias_" in name}
    moved = {name.replace("layers.0.downsample", "layers.1.downsample"): x for name, x in names.items()}
    moved["head.fc.weight"] = np.zeros((3, 16), np.float32)
    settings = dict(input_size=[3, 32, 32], crop_pct=0.9)
    version = model[0]["encoders"]["image"]["version"]
    architecture = {1: "swin_tiny_patch4_window2_32", 2: "swinv2_tiny_window2_32"}[version]
    described = dict(architecture=architecture, pretrained_cfg=settings)
    config, weights = read("swin", moved, tmp_path, described)
    assert_same(weights, model[1])
    assert (config["image_size"], config["resize"]) == (32, "crop 35")
    assert config["encoders"]["image"]["window"] == 2
    assert guess(tmp_path) == "swin"


def test_the_windows_of_swin_v2(tmp_path):
    """From the buffers' size and largest coordinate; from timm's name; and never guessed."""
    kind = "hf_swinv2"
    model = read_checkpoint(kind, goldens.write_checkpoint(kind, tmp_path / "golden"))
    names = official(model)
    for name in names:
        if name.endswith(COORDS):
            side = 24 if ".0.blocks" in name else 12
            largest = math.log(1 + 8 * (side - 1) / (side // 2 - 1), 8)
            names[name] = np.full((1, 2 * side - 1, 2 * side - 1, 2), largest, np.float32)
    image = read("swin", names, tmp_path)[0]["encoders"]["image"]
    assert (image["window"], image["pretrained_window"]) == ([24, 12], [12, 6])
    bare = {name: x for name, x in names.items() if not name.endswith(COORDS)}
    with pytest.raises(WeightsError, match=r"table is missing, and config\.json has no architecture such"):
        read("swin", bare, tmp_path)
    for name, windows in (
        ("swinv2_base_window16_256", (16, 0)),
        ("swinv2_base_window12to24_192to384", (24, 12)),
        ("swinv2_base_window4_24", ([4, 3], 0)),
    ):
        image = read("swin", bare, tmp_path, dict(architecture=name))[0]["encoders"]["image"]
        assert (image["window"], image["pretrained_window"]) == windows
    assert swin_layers.clamped(24, 384, 4) == [24, 24, 24, 12]


def test_an_export_for_maps_smaller_than_a_window(tmp_path):
    """transformers fails there, see tests/parity/test_swin.py."""
    config, weights = read_checkpoint("hf_swin", goldens.write_checkpoint("hf_swin", tmp_path / "golden"))
    for size, fits in ((16, True), (9, True), (8, False)):  # windows of 2 on maps of stride 8
        if fits:
            write_checkpoint("hf_swin", tmp_path / "out", config | dict(image_size=size), weights)
            continue
        message = r"^hf_swin: image\.window is 2, but the last map of 8 pixels is 1 x 1; .* must be above 8$"
        with pytest.raises(WeightsError, match=message):
            write_checkpoint("hf_swin", tmp_path / "refused", config | dict(image_size=size), weights)
    assert not (tmp_path / "refused").exists()


def test_files_that_do_not_fit(model, tmp_path):
    names = official(model)
    for changes, message in (
        ({"layers.1.blocks.1.norm2.bias": None}, r"layers\.1\.blocks\.1\.norm2\.bias is missing"),
        ({"layers.0.blocks.0.attn.extra": np.zeros(1)}, r"attn\.extra is no weight of this architecture"),
        ({"absolute_pos_embed": np.zeros((1, 4, 8))}, "absolute_pos_embed is no weight of this architecture"),
        (
            {"patch_embed.proj.weight": np.zeros((8, 3, 2, 2), np.float32)},
            r"\[8, 3, 2, 2\]; the architecture",
        ),
    ):
        changed = {name: x for name, x in (names | changes).items() if x is not None}
        with pytest.raises(WeightsError, match=message):
            read("swin", changed, tmp_path)
    with pytest.raises(WeightsError, match=r"layers\.0\.blocks\.0 is missing; is it another format"):
        read("swin", dict(a=np.zeros(1)), tmp_path)


def unicl_model(tmp_path):
    """(ModelConfig, our weights, UniCL's) of the golden Swin and a random text encoder."""
    golden, image = read_checkpoint("hf_swin", goldens.write_checkpoint("hf_swin", tmp_path / "golden"))
    size = dict(vocab_size=20, max_len=6, width=64, depth=2, heads=1, mlp_dim=256)
    config = clip_config(golden["encoders"]["image"], text_transformer.UNICL | size, 8, 16)
    config["head"]["image_projection"] = True
    rng = np.random.default_rng(0)
    shapes = {path: shape for path, shape in architecture.shapes(config).items() if path not in image}
    ours = image | {path: np.asarray(rng.normal(size=shape), np.float32) for path, shape in shapes.items()}
    return config, ours, rules.write(FORMATS["unicl"].rules(config), ours)


def test_both_layouts_of_unicl(tmp_path):
    expected, ours, names = unicl_model(tmp_path)
    assert names["text_encoder.resblocks.1.attn.in_proj_weight"].shape == (192, 64)
    assert names["image_projection"].shape == (16, 8)
    names["image_encoder.layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    config, weights = read("unicl", names, tmp_path)
    assert guess(tmp_path / "model.safetensors") == "unicl"
    assert_same(weights, ours)
    assert config["encoders"]["text"] == expected["encoders"]["text"]
    assert config["head"] == expected["head"] | dict(temperature=pytest.approx(1 / math.e))
    assert (config["image_size"], config["resize"]) == (16, "crop 18")
    assert config["views"]["image"]["std"] == (0.229, 0.224, 0.225)
    older = {}
    for name, value in names.items():
        name = name.replace("image_encoder.", "visual.").replace("text_encoder.", "text.")
        older[name.replace("image_projection", "vision_projection")] = value
    older["visual.head.weight"] = np.zeros((3, 16), np.float32)
    again, same = read("unicl", older, tmp_path)
    assert guess(tmp_path / "model.safetensors") == "unicl"
    assert_same(same, weights)
    assert again == config


def test_a_unicl_with_a_weight_too_many_or_too_few(tmp_path):
    _, _, names = unicl_model(tmp_path)
    with pytest.raises(WeightsError, match=r"text_encoder\.extra is no weight of this architecture"):
        read("unicl", names | {"text_encoder.extra": np.zeros(1)}, tmp_path)
    del names["image_projection"]
    with pytest.raises(WeightsError, match="image_projection is missing"):
        read("unicl", names, tmp_path)
