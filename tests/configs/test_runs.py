"""The smallest preset of every recipe trains, evaluates, saves and reports."""

import importlib
import json

import jax
import numpy as np
import pytest

from big_ssl import main
from big_ssl.training import trained
from configs import dinov2_distill

_TEXTS, _PICTURES, _CLASSES = {"zero_shot", "retrieval"}, {"knn"}, {"classification"}
# One a family: of encoders, objectives, evaluators and parts of the report.
RECIPES = {
    "align_base.py:tiny": _TEXTS,
    "finetune_align_imagenet.py:tiny": _CLASSES,
    "clip.py:rn50,tiny": _TEXTS,
    "ibot.py:tiny": _PICTURES,
    "dinov2.py:tiny": _PICTURES,
    "hybrid_clip_dinov2.py:tiny": _TEXTS | _PICTURES,
    "siglip.py:tiny": _TEXTS,
    "mixture_demo.py:tiny": _TEXTS | _PICTURES | _CLASSES,
    "unicl.py:tiny": _TEXTS,
    "hybrid_unicl_ibot.py:tiny": _TEXTS | _PICTURES,
}


def run(recipe, workdir, **init_from):
    """The smallest preset, six steps of it, from weights if they are given."""
    file, arg = recipe.split(".py:")
    config = importlib.import_module(f"configs.{file}").get_config(arg).to_dict()
    config.update(total_steps=6, eval_every=6, log_every=2)
    config["checkpoint"].update(every=6)
    config["init_from"].update(init_from)
    assert main.run(config, str(workdir), f"configs/{recipe}", "a command") == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_smallest_preset_runs(recipe, tmp_path):
    lines = run(recipe, tmp_path)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    evaluated = {key.split("/")[1] for line in lines for key in line if key.startswith("eval/")}
    assert evaluated == RECIPES[recipe]
    shown = {path.name for path in (tmp_path / "report").iterdir()} & {"attention.png", "patches.png"}
    # Swin has no attention maps of whole images.
    assert len(shown) == (2 if evaluated >= _PICTURES and "unicl" not in recipe else 0)
    assert (tmp_path / "checkpoints" / "6").exists()
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.slow
def test_retrieval_goes_on_from_a_pre_trained_run(tmp_path):
    """At a rate that moves next to nothing it is what pre-training ended as."""
    before = run("align_l2.py:tiny", tmp_path / "align")
    after = run("finetune_align_retrieval.py:tiny", tmp_path / "retrieval", path=str(tmp_path / "align"))
    key = "eval/retrieval/twemoji/image_to_text_r10"
    found = [next(line[key] for line in lines if key in line) for lines in (before, after)]
    assert abs(found[0] - found[1]) < 0.01


@pytest.mark.slow
def test_a_student_learns_from_a_run_that_does_not_change(tmp_path):
    """The teacher's tower and heads after the run are the ones that it was given."""
    run("dinov2.py:tiny", tmp_path / "teacher")
    rules = dinov2_distill.get_config("demo").to_dict()["init_from"]
    run("dinov2_distill.py:tiny", tmp_path / "student", **rules | dict(path=str(tmp_path / "teacher")))
    given, found = (trained.load(tmp_path / name)[1]["params"] for name in ("teacher", "student"))
    jax.tree.map(np.testing.assert_array_equal, found["encoders"]["teacher"], given["encoders"]["image"])
    heads = found["heads"]["ibot"], given["heads"]["ibot"]
    jax.tree.map(np.testing.assert_array_equal, heads[0]["teacher_projection"], heads[1]["projection"])
    own = heads[0]["projection"]["prototypes"] - heads[0]["teacher_projection"]["prototypes"]
    assert np.abs(own).max() > 0
