"""The smallest preset of every recipe trains, evaluates, saves and reports."""

import importlib
import json

import numpy as np
import pytest

from big_ssl import main

_TEXTS, _PICTURES, _CLASSES = {"zero_shot", "retrieval"}, {"knn"}, {"classification"}
RECIPES = dict(
    align_base=_TEXTS,
    align_imagenet=_CLASSES,
    clip_rn50=_TEXTS,
    clip_vitb32=_TEXTS,
    ibot_imagenet=_CLASSES,
    ibot_vits16=_PICTURES,
    dinov2_vitl16_short=_PICTURES,
    dinov2_vitg14=_PICTURES,
    dinov2_continue=_PICTURES,
    dinov2_distill_vits14=_PICTURES,
    hybrid_clip_dinov2=_TEXTS | _PICTURES,
)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_smallest_preset_runs(recipe, tmp_path):
    config = importlib.import_module(f"configs.{recipe}").get_config("tiny").to_dict()
    config.update(total_steps=6, eval_every=6, log_every=2)
    config["checkpoint"].update(every=6)
    assert main.run(config, str(tmp_path), f"configs/{recipe}.py:tiny", "a command") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    judged = {key.split("/")[1] for line in lines for key in line if key.startswith("eval/")}
    assert judged == RECIPES[recipe]
    assert (tmp_path / "checkpoints" / "6").exists()
    assert (tmp_path / "report" / "index.html").exists()
