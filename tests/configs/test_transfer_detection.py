"""The recipe of detection: its models and presets, and the smallest preset from training to boxes."""

import json

import jax
import numpy as np
import pytest

import big_ssl
from big_ssl import main
from big_ssl.config import validate
from big_ssl.data.composited_scenes import CompositedScenes
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build
from configs import transfer_detection


def get(arg=""):
    return transfer_detection.get_config(arg).to_dict()


@pytest.mark.parametrize("model", transfer_detection.MODELS)
@pytest.mark.parametrize("preset", ["", "frozen", "staged", "class_agnostic"])
def test_every_model_is_valid_and_builds(model, preset):
    config = get(f"{model},{preset}".rstrip(","))
    validate(config)
    system = build.system(config, None)
    objective = system.terms["detection"].objective
    assert objective.head.classes == (1 if preset == "class_agnostic" else 80)
    assert objective.multiple in (14, 32)


@pytest.mark.parametrize("preset", ["demo", "demo_frozen", "tiny"])
def test_presets_have_the_keys_of_the_recipe_and_are_valid(preset):
    small = get(preset)
    validate(small)
    assert get("coswin_b").keys() == small.keys()
    scenes = small["streams"]["scenes"]
    listed = scenes["data"]["source"]["classes"]
    names = CompositedScenes(scenes=1, classes=listed).label_names("objects/label")
    assert scenes["objectives"]["detection"]["classes"] == len(names)


def test_published_settings():
    """Dynamic Head's code for Swin-T; Florence's twelve epochs and longest side."""
    swin = get("swin_t")
    assert swin["total_steps"] == 24 * (118_287 // 32)
    assert dict(swin["learning_rate"]["values"])[1_000] == 1e-4
    assert (swin["optimizer"]["weight_decay"], swin["eval_transform"]["size"]) == (0.05, 800)
    florence = get()["streams"]["scenes"]["objectives"]["detection"]
    assert (florence["max_side"], florence["blocks"]) == (2500, 6)
    assert get()["total_steps"] == 12 * (118_287 // 32)


def test_the_demo_traces():
    """The full head of the demo, without compiling it."""
    config = get("demo")
    system = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
    params, _ = jax.eval_shape(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))
    head = params["heads"]["detection"]
    assert head["predictions"]["class"]["kernel"].shape == (1, 1, 64, 9)
    assert "dynamic_head" in head


@pytest.mark.slow
def test_the_smallest_preset_from_training_to_boxes(tmp_path):
    """Six steps, of which the last three after a restart; the model of the run detects like its evaluator."""
    pytest.importorskip("faster_coco_eval", reason="the extra eval installs faster-coco-eval")
    config = get("tiny")
    config.update(log_every=1, eval_every=6)
    config["checkpoint"].update(every=3)
    for steps in (3, 6):
        config.update(total_steps=steps)
        config["learning_rate"].update(kind="steps", values=((0, 1e-3),))
        for key in ("peak", "warmup_steps", "start", "final"):
            config["learning_rate"].pop(key, None)
        assert main.run(config, str(tmp_path), "configs/transfer_detection.py:tiny", "a command") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert sorted(losses) == list(range(1, 7))
    assert np.isfinite(list(losses.values())).all()
    assert any("eval/detection/composited/AP50" in line for line in lines)
    assert (tmp_path / "report" / "detection_composited.png").exists()
    model = big_ssl.load(tmp_path)
    assert "detect" in model.methods
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    (found,) = model.detect([image], score_threshold=0.0)
    assert len(found["boxes"]) == 100
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= np.array([90, 50, 90, 50]) + 1e-3).all()
    with pytest.raises(ValueError, match="no text encoder"):
        model.detect([image], ["a cat"])
