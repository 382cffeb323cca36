"""The smallest preset of every recipe trains, evaluates, saves and reports."""

import importlib
import json

import numpy as np
import pytest

from big_ssl import main

RECIPES = ("align_base", "clip_rn50", "clip_vitb32", "ibot_vits16")


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
    seen = {path.name for path in (tmp_path / "report").iterdir()} & {"attention.png", "patches.png"}
    assert len(seen) == (2 if recipe.startswith("ibot") else 0)
    assert judged == ({"knn"} if recipe.startswith("ibot") else {"zero_shot", "retrieval"})
    assert (tmp_path / "checkpoints" / "6").exists()
    assert (tmp_path / "report" / "index.html").exists()
