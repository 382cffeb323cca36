"""Projection heads in DINOv2's and iBOT's training checkpoints: converted, and loaded by a run."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from big_ssl import inference
from big_ssl.convert import convert
from big_ssl.training import initial
from big_ssl.training.setup import set_up
from big_ssl.weights import rules
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import FORMATS, read_checkpoint, write_checkpoint
from big_ssl.weights.tensor_files import write_safetensors
from configs.dinov2 import get_config as dinov2_config
from configs.ibot import get_config as ibot_config
from tests.parity import goldens

WIDTH, HIDDEN, BOTTLENECK, PROTOTYPES = 24, 10, 6, 9
OPTIONS = dict(prototypes=PROTOTYPES, hidden=HIDDEN, bottleneck=BOTTLENECK, layers=3, norm_last_layer=False)
READ_OPTIONS = dict(num_heads=3)


def head(mlp, last_layer, seed, **changes):
    """A head's {name: random array} in older PyTorch's layout; changes: replaced sizes."""
    sizes = dict(hidden=HIDDEN, bottleneck=BOTTLENECK, prototypes=PROTOTYPES) | changes
    rng, hidden, bottleneck = np.random.default_rng(seed), sizes["hidden"], sizes["bottleneck"]
    layers = {0: (hidden, WIDTH), 2: (hidden, hidden), 4: (bottleneck, hidden)}
    shapes = {f"{mlp}.{i}.weight": shape for i, shape in layers.items()}
    shapes |= {f"{mlp}.{i}.bias": shape[:1] for i, shape in layers.items()}
    shapes[f"{last_layer}.weight_g"] = (sizes["prototypes"], 1)
    shapes[f"{last_layer}.weight_v"] = (sizes["prototypes"], bottleneck)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def ours_of(theirs, mlp, last_layer, objective):
    """Our weights, converted from the arrays of `head`."""
    path = f"params/heads/{objective}/projection/"
    ours = {
        f"{path}prototypes": theirs[f"{last_layer}.weight_v"].T,
        f"{path}prototype_lengths": theirs[f"{last_layer}.weight_g"][:, 0],
    }
    for i in range(3):
        ours[f"{path}mlp_{i}/kernel"] = theirs[f"{mlp}.{2 * i}.weight"].T
        ours[f"{path}mlp_{i}/bias"] = theirs[f"{mlp}.{2 * i}.bias"]
    return ours


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """(ModelConfig, our weights, DINOv2's, iBOT's), random; only DINOv2's have SwiGLU and LayerScale."""
    where = tmp_path_factory.mktemp("golden")
    config, ours = read_checkpoint("hf_dinov2", goldens.write_checkpoint("hf_dinov2", where))
    dinov2 = rules.write(FORMATS["dinov2"].rules(config), ours)
    plain = config | dict(encoders=dict(image=config["encoders"]["image"] | dict(feed_forward="mlp")))
    without = ("attention_scale", "mlp_scale", "registers", "mlp_gate/kernel", "mlp_gate/bias")
    kept = {path: x for path, x in ours.items() if not path.endswith(without)}
    return config, ours, dinov2, rules.write(FORMATS["ibot"].rules(plain), kept)


@pytest.fixture(scope="module")
def both():
    """(arrays of a dino_head and an ibot_head of other sizes, our weights of both)."""
    first = head("dino_head.mlp", "dino_head.last_layer", 1)
    second = head("ibot_head.mlp", "ibot_head.last_layer", 2, bottleneck=4, prototypes=7)
    expected = ours_of(first, "dino_head.mlp", "dino_head.last_layer", "dino")
    return first | second, expected | ours_of(second, "ibot_head.mlp", "ibot_head.last_layer", "ibot")


def write(tensors, folder):
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "training.safetensors", tensors, {})
    return folder / "training.safetensors"


def read(kind, tensors, folder, **options):
    return read_checkpoint(kind, write(tensors, folder), READ_OPTIONS | options)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value)


def teacher(backbone, heads):
    return {f"teacher.backbone.{name}": x for name, x in backbone[2].items()} | {
        f"teacher.{name}": x for name, x in heads.items()
    }


def test_dinov2s_two_heads(backbone, both, tmp_path):
    config, ours = read("dinov2", teacher(backbone, both[0]), tmp_path)
    assert_same(ours, backbone[1] | both[1])
    assert config["projections"] == dict(dino=OPTIONS, ibot=OPTIONS | dict(bottleneck=4, prototypes=7))
    write_checkpoint("big_ssl", tmp_path / "ours", config, ours)
    again, weights = read_checkpoint("big_ssl", tmp_path / "ours")
    assert again["projections"] == config["projections"]
    assert_same(weights, ours)


def test_newer_pytorchs_names_of_weight_norm(backbone, both, tmp_path):
    newer = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    heads = {
        name.replace(name.split(".")[-1], newer.get(name.split(".")[-1], name.split(".")[-1])): x
        for name, x in both[0].items()
    }
    assert "ibot_head.last_layer.parametrizations.weight.original0" in heads
    assert_same(read("dinov2", teacher(backbone, heads), tmp_path)[1], backbone[1] | both[1])


def test_a_single_head_is_dinos(backbone, both, tmp_path):
    one = {name: x for name, x in both[0].items() if name.startswith("dino_head.")}
    config, ours = read("dinov2", teacher(backbone, one), tmp_path)
    assert config["projections"] == dict(dino=OPTIONS)
    assert_same(ours, backbone[1] | {path: x for path, x in both[1].items() if "/dino/" in path})


def test_a_backbone_without_heads_has_no_projections(backbone, tmp_path):
    config, ours = read("dinov2", backbone[2], tmp_path)
    assert "projections" not in config
    assert_same(ours, backbone[1])


def test_a_frozen_weight_norm_is_dropped(backbone, both, tmp_path):
    """Frozen at 1; in an EMA 1 up to rounding."""
    heads = dict(both[0])
    heads["dino_head.last_layer.weight_g"] = np.float32([[1], [1 + 1e-6]] * 4 + [[1 - 1e-6]])
    config, ours = read("dinov2", teacher(backbone, heads), tmp_path)
    assert [options["norm_last_layer"] for options in config["projections"].values()] == [True, False]
    expected = {
        path: x for path, x in both[1].items() if not path.endswith("dino/projection/prototype_lengths")
    }
    assert_same(ours, backbone[1] | expected)


def test_the_error_names_an_incomplete_heads_array(backbone, both, tmp_path):
    tensors = teacher(backbone, both[0])
    del tensors["teacher.ibot_head.mlp.2.bias"]
    with pytest.raises(WeightsError, match=r"as dinov2: ibot_head\.mlp\.2\.bias is missing$"):
        read("dinov2", tensors, tmp_path)
    tensors = teacher(backbone, both[0]) | {"teacher.dino_head.mlp.1.weight": np.ones(HIDDEN, np.float32)}
    with pytest.raises(WeightsError, match=r"dino_head\.mlp\.1\.weight is no weight of this architecture"):
        read("dinov2", tensors, tmp_path)


def ibot(backbone, heads):
    """A training checkpoint whose student has other weights than its teacher."""
    whole = {f"teacher.backbone.{name}": x for name, x in backbone[3].items()}
    whole |= {f"teacher.{name}": x for name, x in heads.items()}
    whole |= {f"student.module.backbone.{name}": x + 1 for name, x in backbone[3].items()}
    whole |= {f"student.module.{name}": x + 1 for name, x in heads.items()}
    return whole | {"ibot_loss.center": np.zeros((1, 9)), "ibot_loss.center2": np.zeros((1, 1, 9))}


def test_ibots_shared_prototypes_are_read_once(backbone, tmp_path):
    heads = head("head.mlp", "head.last_layer", 3)
    expected = ours_of(heads, "head.mlp", "head.last_layer", "dino")
    heads |= {
        name.replace("last_layer", "last_layer2"): x for name, x in heads.items() if "last_layer" in name
    }
    actual = read("ibot", ibot(backbone, heads), tmp_path)
    assert actual[0]["projections"] == dict(dino=OPTIONS)
    assert_same({path: x for path, x in actual[1].items() if "/heads/" in path}, expected)
    student = read("ibot", ibot(backbone, heads), tmp_path, network="student")[1]
    assert_same(student, {path: x + 1 for path, x in actual[1].items()})


def test_ibots_separate_patch_prototypes_share_the_mlp(backbone, tmp_path):
    heads = head("head.mlp", "head.last_layer", 3)
    own = head("head.mlp", "head.last_layer2", 4, prototypes=5)
    heads |= {name: x for name, x in own.items() if "last_layer2" in name}
    actual = read("ibot", ibot(backbone, heads), tmp_path)
    assert actual[0]["projections"] == dict(dino=OPTIONS, ibot=OPTIONS | dict(prototypes=5))
    expected = ours_of(heads, "head.mlp", "head.last_layer", "dino")
    expected |= ours_of(heads, "head.mlp", "head.last_layer2", "ibot")
    assert_same({path: x for path, x in actual[1].items() if "/heads/" in path}, expected)


def test_exports_and_features_omit_the_heads(backbone, both, tmp_path):
    """To transformers, and in encode_image; convert returns the number of parameters written."""
    source = write(teacher(backbone, both[0]), tmp_path)
    whole = convert("dinov2", source, "big_ssl", tmp_path / "ours", READ_OPTIONS)
    assert whole == sum(x.size for x in (backbone[1] | both[1]).values())
    alone = convert("big_ssl", tmp_path / "ours", "hf_dinov2", tmp_path / "hf", {})
    assert alone == sum(x.size for x in backbone[1].values())
    assert_same(read_checkpoint("hf_dinov2", tmp_path / "hf")[1], backbone[1])
    assert "projections" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    convert("dinov2", write(backbone[2], tmp_path / "alone"), "big_ssl", tmp_path / "backbone", READ_OPTIONS)
    features = [
        inference.load(tmp_path / name).encode_image(pictures, resize=False) for name in ("ours", "backbone")
    ]
    np.testing.assert_array_equal(*features)


def recipe(config, converted, folder):
    """A training config with the converted model's encoder and heads, initialised from folder."""
    made = config.to_dict()
    made["init_from"].update(path=str(folder))
    made["encoders"]["image"].update(converted["encoders"]["image"])
    for name, options in converted["projections"].items():
        made["streams"]["images"]["objectives"][name].update(head=options)
    return made


@pytest.mark.parametrize("kind", ["dinov2", "ibot"])
def test_a_run_starts_from_the_converted_heads(kind, backbone, both, tmp_path):
    if kind == "dinov2":
        source, made = teacher(backbone, both[0]), dinov2_config("vitl14,tiny")
    else:
        source, made = ibot(backbone, head("head.mlp", "head.last_layer", 3)), ibot_config("tiny")
    convert(kind, write(source, tmp_path), "big_ssl", tmp_path / "ours", READ_OPTIONS)
    converted, ours = read_checkpoint("big_ssl", tmp_path / "ours")
    config = recipe(made, converted, tmp_path / "ours")
    state = set_up(config, jax.devices()[:1]).abstract_state
    actual = flatten_dict(dict(params=initial.read(config, state)["params"]), sep="/")
    assert set(converted["projections"]) == ({"dino", "ibot"} if kind == "dinov2" else {"dino"})
    assert_same(actual, ours)
