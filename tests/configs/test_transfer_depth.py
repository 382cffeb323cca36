"""Depth on DINOv2's protocol: published settings, any encoder, and a run from training to drawings."""

import json
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from big_ssl import inference, main, predict
from big_ssl.config import ConfigError, validate
from big_ssl.data import sources
from big_ssl.training import batches, build, trained
from big_ssl.training.lr_multipliers import LrMultipliers
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from configs import transfer_depth
from tests import compiling


def system(arg):
    config = transfer_depth.get_config(arg).to_dict()
    validate(config)
    return build.system(config, None), config


def head_parameters(arg):
    """{path: shape} of the head."""
    made, config = system(arg)
    shapes, _ = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    return {path: x.shape for path, x in flatten_dict(shapes["heads"]["depth"], sep="/").items()}


def test_published_sizes_of_the_heads():
    """Those of the released linear heads' arrays, conv_depth.weight: [256, 2 * width * layers, 1, 1]."""
    assert head_parameters("vits14") == {"linear/kernel": (768, 256), "linear/bias": (256,)}
    assert head_parameters("vitl14,linear4")["linear/kernel"] == (8192, 256)


def test_published_settings():
    config = transfer_depth.get_config("vitl14,dpt").to_dict()
    objective = config["streams"]["scenes"]["objectives"]["depth"]
    assert objective["layers"] == (4, 11, 17, 23)
    assert objective["head"]["hidden"] == (128, 256, 512, 1024)
    assert (config["total_steps"], config["streams"]["scenes"]["batch_size"]) == (38_400, 16)
    # Frozen; or waiting for the head.
    for arg, frozen in (("vitl14,dpt", True), ("vits14,tuned", False)):
        rules = transfer_depth.get_config(arg).to_dict()["lr_multipliers"]
        assert LrMultipliers.build(rules, 38_400).frozen("encoders/image/patch_embedding/kernel") is frozen


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers", (-1, 0.5), "layers.1 is 0.5; it must be a whole number"),
        ("pixel_group", -1, "pixel_group is -1; it must be at least 0"),
        ("head", dict(kind="linear", max_depth=0.0), "head.max_depth is 0.0; it must be above 0"),
    ],
)
def test_numbers_that_cannot_be(key, value, message):
    config = transfer_depth.get_config("tiny").to_dict()
    objective = config["streams"]["scenes"]["objectives"]["depth"]
    objective.update(layers=(-2, -1))
    validate(config)
    objective[key] = value
    with pytest.raises(ConfigError, match=f"^streams.scenes.objectives.depth.{re.escape(message)}$"):
        validate(config)


def test_a_swins_four_maps_are_read_in_place_of_layers():
    assert head_parameters("swin_t")["linear/kernel"] == (96 + 192 + 384 + 768, 256)
    names = head_parameters("swin_t,dpt")
    assert not any("readout" in name or "resize" in name for name in names)
    assert names["decoder/input3/kernel"] == (3, 3, 768, 256)


@pytest.fixture(scope="module")
def stored():
    """(ModelConfig, its variables) of a tiny run's model with random weights."""
    made, config = system("tiny")
    config["streams"]["scenes"]["objectives"]["depth"]["layers"] = (0, 1)
    made = build.system(config, None)
    rng = np.random.default_rng(0)
    params, mutable = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), params)
    variables = dict(params=params, encoders=mutable["encoders"])
    return trained.describe(config), trained.exported(config, variables)


def test_a_loaded_model_predicts_depths_and_is_stored_with_its_head(stored, tmp_path):
    described, variables = stored
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    model = inference.Model(described, variables)
    with compiling.quickly():
        (depth,) = model.depth(image)
        assert depth.shape == (40, 56)
        assert 0 < depth.min() < depth.max() < 12
        write_checkpoint("big_ssl", tmp_path / "model", described, flatten_dict(variables, sep="/"))
        config, ours = read_checkpoint("big_ssl", tmp_path / "model")
        assert set(ours) == set(flatten_dict(variables, sep="/"))
        (again,) = inference.load(tmp_path / "model").depth(image)
    np.testing.assert_array_equal(again, depth)
    assert config["tasks"]["depth"]["head"]["bins"] == 16


@pytest.mark.slow
def test_the_smallest_preset_trains_evaluates_and_draws(tmp_path):
    """From training on composited scenes to a page of drawings of them."""
    config = transfer_depth.get_config("tiny").to_dict()
    assert main.run(config, str(tmp_path / "run"), "configs/transfer_depth.py:tiny", "a command") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.isfinite(losses).all()
    (*_, last) = [line for line in lines if "eval/depth/composited/rmse" in line]
    assert 0 < last["eval/depth/composited/constant_rmse"] < 5
    assert 0 <= last["eval/depth/composited/delta1"] <= 1
    assert (tmp_path / "run" / "report" / "depth_composited.png").exists()
    scenes = sources.build(dict(kind="composited_scenes", split="test", size=48, scenes=3))
    (tmp_path / "scenes").mkdir()
    for i in range(3):
        (tmp_path / "scenes" / f"{i}.bmp").write_bytes(scenes[i]["image"])
    (tmp_path / "scenes" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "drawn"
    assert predict.predict(tmp_path / "run", "depth", tmp_path / "scenes", out) == (3, 1)
    record = json.loads((out / "predictions.json").read_text())
    (expected,) = inference.load(tmp_path / "run").depth(str(tmp_path / "scenes" / "0.bmp"))
    assert expected.shape == (48, 48)
    np.testing.assert_array_equal(np.load(out / record["predictions"][0]["map"]), expected)
    assert Image.open(out / "0.png").size[1] == 240
    with pytest.raises(ValueError, match=r"^--task=detect requires detect; the model has .*depth"):
        predict.predict(tmp_path / "run", "detect", tmp_path / "scenes", out)
