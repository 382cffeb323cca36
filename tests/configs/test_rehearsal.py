"""The preset `rehearsal`: every full recipe, narrow and short, and otherwise itself."""

import copy
import importlib

import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from big_ssl.config import validate
from big_ssl.training import schedules, stages
from configs import rehearsal
from launch import rehearsal_data

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
    "florence",
    "hybrid_clip_dinov2",
    "hybrid_unicl_ibot",
    "ibot",
    "siglip",
    "unicl:swinb",
    "unicl:swint_in1k_gcc3m",
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


def test_a_rehearsal_keeps_what_the_stages_of_its_recipe_change():
    """Florence's: texts, then image sizes, windows and accumulation; as schedules go on from each other."""
    full, short = (stages.resolve(get("florence", preset)) for preset in ("", "rehearsal"))
    assert [stage.name for stage in short] == [stage.name for stage in full]
    assert [stage.config["total_steps"] for stage in short] == [rehearsal.STEPS // 3] * 3
    for long, brief in zip(full, short, strict=True):
        fields, expected = (x.config["streams"]["pairs"]["data"]["fields"] for x in (brief, long))
        assert fields["text"]["augment"] == expected["text"]["augment"]
        assert brief.config["grad_accum"] == long.config["grad_accum"]
        assert brief.config["encoders"]["image"]["window"] == long.config["encoders"]["image"]["window"]
    sizes = [stage.config["streams"]["pairs"]["data"]["fields"]["image"]["crop"]["size"] for stage in short]
    assert sizes == [stage.config["eval_transform"]["size"] for stage in short] == [64, 64, 96]
    rates = [stage.config["learning_rate"] for stage in short]
    assert [a["final"] for a in rates[:-1]] == [b["peak"] for b in rates[1:]]


def test_classes_of_a_mixture_have_the_names_of_the_rehearsals_data():
    sources = get("unicl:swint_in1k_gcc3m", "rehearsal")["streams"]["pairs"]["data"]["sources"]
    assert sources[0]["fields"]["text"] == dict(captions={}, class_key="label", label_set="")
    assert [entry["source"]["text_keys"] for entry in sources] == [("label",), ("text",)]


@pytest.mark.parametrize(
    ("recipe", "count"), [("clip:vitb32", 1), ("unicl:swinb", 3), ("florence", 2), ("hybrid_unicl_ibot", 2)]
)
def test_flags_say_where_the_data_of_every_source_are(recipe, count):
    config = ConfigDict(get(recipe, "rehearsal"))
    paths = list(rehearsal_data.data_folders(config.to_dict(), "config"))
    assert len(paths) == count
    for path in paths:  # as --PATH=gs://data does
        config_path.set_value(path.removeprefix("config."), config, "gs://data")
    data = config.to_dict()["streams"]["pairs"]["data"]
    assert {entry["source"]["data_dir"] for entry in data.get("sources", (data,))} == {"gs://data"}


def test_the_recipe_itself_is_left_as_it_is():
    for recipe in ("dinov2", "florence"):
        full = get(recipe)
        before = copy.deepcopy(full)
        rehearsal.shrink(full)
        assert full == before
