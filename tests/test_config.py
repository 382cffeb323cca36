"""validate(): what a config may hold, each mistake named by its key."""

import copy
import math
import re

import pytest

from big_ssl.config import ConfigError, validate
from big_ssl.config_ranges import broken_rules
from configs.align_l2 import get_config


def _changed(path, value):
    config = get_config("tiny").to_dict()
    *parents, last = path.split("/")
    node = config
    for key in parents:
        node = node[key]
    node[last] = value
    return config


def _without(path):
    config = get_config("tiny").to_dict()
    *parents, last = path.split("/")
    node = config
    for key in parents:
        node = node[key]
    del node[last]
    return config


@pytest.mark.smoke
@pytest.mark.parametrize("preset", ["", "demo", "tiny", "multilingual"])
def test_the_recipe_and_its_presets_are_valid(preset):
    validate(get_config(preset).to_dict())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("total_step", "total_step is no known key; did you mean total_steps?"),
        ("optimizer/weight_decey", "optimizer.weight_decey is no known key; did you mean weight_decay?"),
        ("mesh/tensors", "mesh.tensors is no known key; did you mean tensor?"),
        ("checkpoint/kep", "checkpoint.kep is no known key; did you mean keep?"),
        ("streams/pairs/batchsize", "streams.pairs.batchsize is no known key; did you mean batch_size?"),
        (
            "streams/pairs/data/fields/image/crop/resise",
            "streams.pairs.data.fields.image.crop.resise is no known key; did you mean resize?",
        ),
        (
            "streams/pairs/data/source/style",
            "streams.pairs.data.source.style is no known key; did you mean styles?",
        ),
        (
            "streams/pairs/objectives/contrastive/temprature",
            "streams.pairs.objectives.contrastive.temprature is no known key; did you mean temperature?",
        ),
        ("encoders/image/widht", "encoders.image.widht is no known key; did you mean width?"),
        ("encoders/text/head", "encoders.text.head is no known key; did you mean heads?"),
        (
            "streams/pairs/data/fields/image/flipped",
            "streams.pairs.data.fields.image.flipped is no known key; did you mean flip?",
        ),
        ("evals/emoji/style", "evals.emoji.style is no known key; did you mean styles?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(path, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        validate(_changed(path, 1))


def test_a_key_like_no_other_gets_the_list():
    with pytest.raises(ConfigError, match=r"^mesh.qqq is no known key; there are data, fsdp, tensor$"):
        validate(_changed("mesh/qqq", 1))


@pytest.mark.parametrize("key", ["dtype", "remat", "max_len", "vocab_size"])
def test_what_the_run_itself_gives_an_encoder_is_no_key(key):
    with pytest.raises(ConfigError, match=rf"^encoders.text.{key} is no known key"):
        validate(_changed(f"encoders/text/{key}", 1))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("streams/pairs/data/source/kind", "emojis", ".kind: 'emojis' is unknown; did you mean emoji?"),
        ("encoders/image/kind", "resnext", "encoders.image.kind: 'resnext' is unknown"),
        ("learning_rate/kind", "cosin", "learning_rate: schedule: kind 'cosin' is unknown"),
        ("optimizer/name", "adam", "optimizer.name is 'adam'; use adamw, lamb, sgd"),
        ("dtype", "float16", "dtype is 'float16'; use float32 or bfloat16"),
        ("remat", "ful", "remat is 'ful'; use none, dots, full"),
        ("streams/pairs/objectives/contrastive/kind", "contrast", ".kind: 'contrast' is unknown"),
        ("evals", dict(x=dict(kind="emojis")), "evals.x.kind: 'emojis' is unknown; did you mean emoji?"),
    ],
)  # fmt: skip
def test_an_unknown_choice_is_named(path, value, message):
    if message.startswith("."):
        message = f"{path.rpartition('/')[0].replace('/', '.')}{message}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        validate(_changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("total_steps", "20", "total_steps is '20', of type str; it must be int"),
        ("total_steps", 20.0, "total_steps is 20.0, of type float; it must be int"),
        ("total_steps", True, "total_steps is True, of type bool; it must be int"),
        ("ema", "0.9", "ema is '0.9', of type str; it must be int or float"),
        ("mesh", 8, "mesh is 8; it must be a dict of data, fsdp, tensor"),
        ("optimizer/clip_norm", None, "optimizer.clip_norm is None, of type NoneType"),
        ("streams/pairs/batch_size", 1.5, "streams.pairs.batch_size is 1.5, of type float"),
        (
            "streams/pairs/data/fields/image/crop/size",
            "16",
            "streams.pairs.data.fields.image.crop.size is '16', of type str",
        ),
        (
            "streams/pairs/data/fields/image/flip",
            1,
            "streams.pairs.data.fields.image.flip is 1, of type int; it must be bool",
        ),
        ("encoders/text/depth", 2.5, "encoders.text.depth is 2.5, of type float; it must be int"),
        ("encoders/image/depth", "deep", "encoders.image.depth is 'deep', of type str; it must be int or"),
        ("streams/pairs/objectives/contrastive/image_projection", 1, "streams.pairs.objectives.contrastive."),
        ("mesh_rules", (("v5", 3),), "mesh_rules.0.1 is 3; it must be a dict of data, fsdp, tensor"),
        ("mesh_rules", ("v5",), "mesh_rules.0 is 'v5'; it must be a pair of a pattern and mesh sizes"),
        ("init_from/remap", (("a",),), "init_from.remap.0 is ('a',); it must be a pair of a pattern and"),
        ("init_from/remap", (("a", "b", 1),), "init_from.remap.0.2 is 1, of type int; it must be str"),
        ("sharding", (("(", ()),), "sharding.0: the pattern '(' is not a regular expression"),
        ("sharding", (("word", "fsdp"),), "sharding.0.1 is 'fsdp', of type str; it must be tuple or list"),
    ],
)
def test_a_wrong_type_is_named(path, value, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        validate(_changed(path, value))


@pytest.mark.parametrize(
    "path",
    ["seed", "remat", "optimizer/b2", "streams/pairs/data/fields/text/captions",
     "streams/pairs/data/fields/image/std", "streams/pairs/data/fields/image/crop", "encoders/image/kind",
     "eval_transform/filter", "streams/pairs/data/source",
     "streams/pairs/data/source/styles", "streams/pairs/objectives/contrastive/embed_dim",
     "evals/emoji/kind"],
)  # fmt: skip
def test_a_missing_key_is_named(path):
    with pytest.raises(ConfigError, match=rf"^{re.escape(path.replace('/', '.'))} is missing"):
        validate(_without(path))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("total_steps", 0, "total_steps is 0; it must be at least 1"),
        ("log_every", 0, "log_every is 0; it must be at least 1"),
        ("eval_every", -1, "eval_every is -1; it must be at least 1"),
        ("checkpoint/every", 0, "checkpoint.every is 0; it must be at least 1"),
        ("checkpoint/keep", 0, "checkpoint.keep is 0; it must be at least 1"),
        ("streams/pairs/batch_size", 0, "streams.pairs.batch_size is 0; it must be at least 1"),
        (
            "streams/pairs/data/fields/image/crop/size",
            0,
            "streams.pairs.data.fields.image.crop: size is 0; it must be between 1 and resize, 18",
        ),
        ("ema", 1.0, "ema: 1.0 must lie in [0, 1)"),
        ("ema", dict(kind="warmup", peak=0.9), "ema: warmup takes momentum, not peak"),
        ("ema", dict(kind="warm"), "ema: schedule: kind 'warm' is unknown"),
        (
            "streams/pairs/data/fields/image/crop/size",
            19,
            "streams.pairs.data.fields.image.crop: size is 19; it must be between 1 and",
        ),
        (
            "streams/pairs/data/fields/image/crop/resize_mode",
            "pad",
            "streams.pairs.data.fields.image.crop: resize_mode is 'pad'; use crop or stretch",
        ),
        (
            "lr_multipliers",
            (("x", dict(kind="step", values=())),),
            "lr_multipliers.0.1: schedule: kind 'step' is unknown",
        ),
        (
            "lr_multipliers",
            (("x", dict(kind="layer_decay", decay=2)),),
            "lr_multipliers.0.1: layer_decay: decay is 2; it must",
        ),
        ("learning_rate", dict(kind="steps"), "learning_rate.values is missing"),
        ("learning_rate", dict(kind="steps", values=((1, 0.1),)), "learning_rate: schedule: steps [1] must"),
        ("learning_rate", dict(kind="steps", values=(), peak=1), "learning_rate.peak is no known key"),
        ("learning_rate", dict(kind="linear", peak=1.0), "learning_rate.warmup_steps is missing"),
        ("learning_rate", 0.1, "learning_rate is 0.1; it must be a dict of kind, peak"),
        ("failure_limits/window_examples", 0, "failure_limits.window_examples is 0; it must be at least 1"),
        (
            "failure_limits/replaced_fraction",
            5,
            "failure_limits.replaced_fraction is 5; it must lie",
        ),
        ("streams/pairs/data/threads", -1, "streams.pairs.data.threads is -1; it must be at least 0"),
        (
            "streams/pairs/data/cache_mib",
            math.nan,
            "streams.pairs.data.cache_mib is nan; it must be",
        ),
        (
            "streams/pairs/data/fields/text/captions",
            dict(a=0.0, b=0),
            "streams.pairs.data.fields.text.captions: one of them must have a weight above 0",
        ),
        (
            "streams/pairs/data/fields/text/captions",
            dict(a=-1, b=2),
            "streams.pairs.data.fields.text.captions.a is -1",
        ),
        (
            "streams/pairs/data/fields/text/captions",
            dict(a="1"),
            "streams.pairs.data.fields.text.captions.a is '1'",
        ),
        (
            "streams/pairs/data/fields/text/kind",
            "texts",
            "streams.pairs.data.fields.text.kind: 'texts' is un",
        ),
        (
            "streams/pairs/data/fields/image/mask",
            dict(grid=4),
            "streams.pairs.data.fields.image.mask: it needs",
        ),
        ("eval_transform/filter", "box", "eval_transform.filter is 'box'; use bicubic, bilinear, lanczos"),
        ("eval_transform/resize", 15, "eval_transform.size is 16; it must be at most resize, 15"),
        (
            "streams/pairs/data/source",
            dict(kind="image_folder", path="x", orientation="up"),
            "streams.pairs.data.source.orientation is 'up'; use exif or stored",
        ),
        (
            "streams/pairs/data/source",
            dict(kind="parquet", path="x", alpha=1),
            "streams.pairs.data.source.alpha is 1, of type int; it must be str",
        ),
        (
            "streams/pairs/data/sources",
            (),
            "streams.pairs.data.source is no known key; did you mean sources?",
        ),
        (
            "learning_rate/warmup_steps",
            20,
            "learning_rate: schedule: warmup_steps 20 must be below total_steps 20",
        ),
    ],
)
def test_values_that_cannot_be(path, value, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        validate(_changed(path, value))


NAN, INF = float("nan"), float("inf")
TERM = "streams/pairs/objectives/contrastive"


def _steps(*values):
    return dict(kind="steps", values=values)


@pytest.mark.parametrize(
    ("path", "value", "inside", "rule"),
    [
        ("learning_rate/peak", NAN, "", "be a finite number"),
        ("learning_rate/peak", -1e-3, "", "be at least 0"),
        ("learning_rate", _steps((0, 0.1), (5, -0.1)), ".values.1.1", "be at least 0"),
        ("lr_multipliers", (("x", -0.5),), ".0.1", "be at least 0"),
        ("lr_multipliers", (("x", _steps((0, INF))),), ".0.1.values.0.1", "be a finite number"),
        ("optimizer/b1", 1.0, "", "lie in [0, 1)"),
        ("optimizer/b2", -0.1, "", "lie in [0, 1)"),
        ("optimizer/eps", 0.0, "", "be above 0"),
        ("optimizer/clip_norm", -1.0, "", "be at least 0"),
        ("optimizer/weight_decay", dict(kind="cosine", peak=-1.0, warmup_steps=0), ".peak", "be at least 0"),
        ("ema", dict(kind="warmup", momentum=1.5), ".momentum", "lie in [0, 1)"),
        ("seed", -1, "", "be at least 0"),
        ("profile", -1, "", "be at least 0"),
        ("mesh/fsdp", 0, "", "be at least 1, or -1"),
        ("mesh_rules", (("v5", dict(data=0, fsdp=1, tensor=1)),), ".0.1.data", "be at least 1, or -1"),
        (f"{TERM}/temperature", 0.0, "", "be above 0"),
        (f"{TERM}/weight", NAN, "", "be a finite number"),
        (f"{TERM}/label_smoothing", 1.0, "", "lie in [0, 1)"),
        ("encoders/image/drop_connect", 1.0, "", "lie in [0, 1)"),
        ("encoders/text/heads", 0, "", "be at least 1"),
        ("streams/pairs/data/fields/image/std", (0.5, 0.0, 0.5), ".1", "be above 0"),
        ("evals/emoji/training_styles", (NAN,), ".0", "be a finite number"),
    ],
)
def test_numbers_that_cannot_be(path, value, inside, rule):
    key = path.replace("/", ".") + inside
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)} is \S+; it must {re.escape(rule)}"):
        validate(_changed(path, value))


def test_every_message_is_one_line():
    for path in ("x", "mesh/x", "encoders/text/x", "evals/emoji/x"):
        with pytest.raises(ConfigError) as caught:
            validate(_changed(path, 1))
        assert "\n" not in str(caught.value)


def test_a_ratio_of_a_crop_may_be_above_one_and_a_masks_may_not():
    assert not list(broken_rules((3 / 4, 4 / 3), "streams.images.data.fields.global_crops.crop.ratio"))
    assert list(broken_rules(-1.0, "streams.images.data.fields.global_crops.crop.ratio"))
    assert list(broken_rules((0.1, 1.5), "streams.images.data.fields.global_crops.mask.ratio"))


def test_a_mask_group_has_an_example():
    (line,) = broken_rules(dict(crops=dict(mask=dict(mask_group=0))))
    assert line == "crops.mask.mask_group is 0; it must be at least 1"
    assert not list(broken_rules(0, "encoders.image.bn_group"))


def test_two_objectives_of_one_name_are_refused():
    config = get_config("tiny").to_dict()
    config["streams"]["other"] = copy.deepcopy(config["streams"]["pairs"])
    message = "streams.other.objectives.contrastive: streams.pairs has an objective of that name"
    with pytest.raises(ConfigError, match=message):
        validate(config)
    objectives = config["streams"]["other"]["objectives"]
    objectives["second"] = objectives.pop("contrastive")
    validate(config)
