"""The preset `rehearsal`: every full recipe, narrow and short, and otherwise itself."""

import importlib

import pytest
from flax.traverse_util import flatten_dict

from big_ssl.config import validate
from big_ssl.training import schedules
from configs import rehearsal

RECIPES = (
    "align_base",
    "align_l2",
    "clip:rn50",
    "clip:vitb32",
    "clip:vitl14",
    "dinov2:vitg14",
    "dinov2:vitl16_short",
    "dinov2_continue",
    "dinov2_distill",
    "finetune_align_imagenet",
    "finetune_align_retrieval",
    "finetune_ibot_imagenet",
    "hybrid_clip_dinov2",
    "ibot",
    "siglip",
    "unicl:swinb",
)


def get(recipe, preset=""):
    """The config of FILE or FILE:MODEL."""
    file, _, model = recipe.partition(":")
    arg = ",".join(filter(None, (model, preset)))
    return importlib.import_module(f"configs.{file}").get_config(arg).to_dict()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_rehearsal_keeps_the_path_of_its_recipe(recipe):
    full, short = get(recipe), get(recipe, "rehearsal")
    validate(short)
    for key in ("dtype", "remat", "grad_accum", "sharding", "seed", "init_from", "failure_limits"):
        assert short[key] == full[key], key
    for key, value in flatten_dict(full["optimizer"], sep="/").items():
        if "warmup_steps" not in key:
            assert flatten_dict(short["optimizer"], sep="/")[key] == value, key
    for name, encoder in full["encoders"].items():
        assert encoder.keys() == short["encoders"][name].keys()
        for key in ("kind", "scan", "feed_forward", "drop_path", "drop_path_mode", "pooling"):
            assert short["encoders"][name].get(key) == encoder.get(key)
    for name, stream in full["streams"].items():
        assert short["streams"][name]["objectives"].keys() == stream["objectives"].keys()
        assert short["streams"][name]["data"]["fields"].keys() == stream["data"]["fields"].keys()
        data = short["streams"][name]["data"]
        assert {entry["source"]["kind"] for entry in data.get("sources", (data,))} == {"tfds"}
    assert short["mesh"]["fsdp"] == 2
    assert short["evals"]


def test_schedules_keep_their_shapes():
    full, short = (get("ibot", preset)["learning_rate"] for preset in ("", "rehearsal"))
    total = get("ibot")["total_steps"]
    long, brief = schedules.build(full, total), schedules.build(short, rehearsal.STEPS)
    for step in range(2, rehearsal.STEPS):
        assert float(brief(step)) == pytest.approx(float(long(step * total / rehearsal.STEPS)), rel=0.2)
    frozen = get("ibot", "rehearsal")["lr_multipliers"][0][1]["values"]
    assert frozen == ((0, 0.0), (1, 1.0))


def test_the_recipe_itself_is_left_as_it_is():
    full = get("dinov2")
    before = flatten_dict(full, sep="/")
    rehearsal.shrink(full)
    assert flatten_dict(full, sep="/") == before
