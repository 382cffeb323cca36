"""Segmentation on DINOv2's protocol: published settings, any encoder, and a run from training to drawings."""

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
from configs import transfer_segmentation
from tests import compiling


def system(arg, **objective):
    config = transfer_segmentation.get_config(arg).to_dict()
    config["streams"]["scenes"]["objectives"]["segmentation"].update(objective)
    validate(config)
    return build.system(config, None), config


def head_shapes(arg):
    """{path: shape} of the head's parameters and running statistics."""
    made, config = system(arg)
    params, mutable = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    parts = params["heads"]["segmentation"] | mutable["heads"]["segmentation"]
    return {path: x.shape for path, x in flatten_dict(parts, sep="/").items()}


def test_published_sizes_of_the_heads():
    """Those of the released linear heads' arrays: conv_seg.weight is [150, width * layers, 1, 1]."""
    assert head_shapes("vits14") == {
        "norm/scale": (384,),
        "norm/bias": (384,),
        "classifier/kernel": (384, 150),
        "classifier/bias": (150,),
        "batch_stats/norm/mean": (384,),
        "batch_stats/norm/var": (384,),
    }
    assert head_shapes("vits14,ms")["classifier/kernel"] == (4 * 384, 150)


def test_swins_maps_and_a_vits_pyramid_under_upernet():
    swin = head_shapes("swin_t,upernet")
    assert [swin[f"map_norm{i}/scale"] for i in range(4)] == [(96,), (192,), (384,), (768,)]
    assert swin["upernet/bottleneck/conv/kernel"] == (3, 3, 768 + 4 * 512, 512)
    vit = head_shapes("vits14,upernet")
    assert vit["neck/level0_up1/kernel"] == (192, 2, 2, 96)
    assert vit["upernet/lateral0/conv/kernel"] == (1, 1, 384, 512)


def test_published_settings():
    config = transfer_segmentation.get_config("vitg14,ms").to_dict()
    evaluator = config["evals"]["ade20k"]
    assert (evaluator["scales"], evaluator["flip"]) == ((1.0, 1.32, 1.73, 2.28, 3.0), True)
    assert (evaluator["window"] % 14, evaluator["window"] // evaluator["stride"]) == (0, 2)
    assert (config["total_steps"], config["streams"]["scenes"]["batch_size"]) == (40_000, 16)
    for arg, frozen in {"swin_t": True, "vitb14": True, "vits14,tuned": False, "upernet": False}.items():
        config = transfer_segmentation.get_config(arg).to_dict()
        multipliers = LrMultipliers.build(config["lr_multipliers"], config["total_steps"])
        assert multipliers.frozen("encoders/image/patch_embedding/kernel") == frozen


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers", (-1, 0.5), "layers.1 is 0.5; it must be a whole number"),
        ("classes", 0, "classes is 0; it must be at least 1"),
        ("head", dict(kind="linear", bn_group=-1), "head.bn_group is -1; it must be at least 0"),
    ],
)
def test_numbers_that_cannot_be(key, value, message):
    with pytest.raises(ConfigError, match=f"^streams.scenes.objectives.segmentation.{re.escape(message)}$"):
        system("tiny", **{key: value})


@pytest.fixture(scope="module")
def stored():
    """(ModelConfig, its variables) of a tiny run's model with random weights and statistics."""
    made, config = system("tiny", layers=(0, -1))
    rng = np.random.default_rng(0)
    trees = jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))
    params, mutable = jax.tree.map(lambda x: np.abs(0.3 * rng.normal(size=x.shape)).astype(np.float32), trees)
    variables = dict(params=params, encoders=mutable["encoders"], heads=mutable["heads"])
    return trained.describe(config), trained.exported(config, variables)


def test_a_loaded_model_has_its_heads_running_statistics(stored, tmp_path):
    described, variables = stored
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    model = inference.Model(described, variables)
    other = variables | dict(heads=jax.tree.map(lambda x: x + 1, variables["heads"]))
    with compiling.quickly():
        (logits,) = model.segment(image, logits=True)
        assert logits.shape == (40, 56, 10)
        (changed,) = model.for_evaluation(jax.device_put(other)).segment(image, logits=True)
        assert np.abs(changed - logits).max() > 0.01
        write_checkpoint("big_ssl", tmp_path / "model", described, flatten_dict(variables, sep="/"))
        assert set(read_checkpoint("big_ssl", tmp_path / "model")[1]) == set(flatten_dict(variables, sep="/"))
        (again,) = inference.load(tmp_path / "model").segment(image, logits=True)
    np.testing.assert_array_equal(again, logits)


@pytest.mark.slow
def test_the_smallest_preset_trains_evaluates_and_draws(tmp_path):
    """From training on composited scenes, over a checkpoint, to a page of drawings of them."""
    config = transfer_segmentation.get_config("tiny").to_dict()
    assert main.run(config, str(tmp_path / "run"), "configs/transfer_segmentation.py:tiny", "a command") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.isfinite(losses).all()
    (*_, last) = [line for line in lines if "eval/segmentation/composited/miou" in line]
    assert 0 < last["eval/segmentation/composited/miou"] < 1
    assert "eval/segmentation/composited/iou_background" in last
    assert (tmp_path / "run" / "report" / "segmentation_composited.png").exists()
    scenes = sources.build(config["evals"]["composited"]["data"] | dict(size=48))
    (tmp_path / "scenes").mkdir()
    for i in range(2):
        (tmp_path / "scenes" / f"{i}.bmp").write_bytes(scenes[i]["image"])
    out = tmp_path / "drawn"
    assert predict.predict(tmp_path / "run", "segment", tmp_path / "scenes", out) == (2, 0)
    record = json.loads((out / "predictions.json").read_text())
    (expected,) = inference.load(tmp_path / "run").segment(str(tmp_path / "scenes" / "0.bmp"))
    np.testing.assert_array_equal(np.asarray(Image.open(out / record["predictions"][0]["map"])), expected)
    # The head's running statistics are those of the average of weights, and not the initial ones.
    _, variables = trained.load(tmp_path / "run")
    norm = variables["heads"]["segmentation"]["batch_stats"]["norm"]
    assert np.abs(norm["mean"]).max() > 1e-3
