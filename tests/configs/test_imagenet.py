"""The recipes that fine-tune on ImageNet: the published values, and presets, small changes to them."""

import re

import jax
import numpy as np
import pytest

from big_ssl.config import validate
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build, requirements, schedules
from big_ssl.training.lr_multipliers import LrMultipliers
from configs import align_base, align_l2, finetune_align_imagenet, finetune_ibot_imagenet

RECIPES = {"ibot": finetune_ibot_imagenet, "align": finetune_align_imagenet}
EPOCH = 1_251


def shapes(config):
    made = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
    return jax.eval_shape(lambda: made.init(jax.random.key(0), batches.abstract_batch(config)))[0]


@pytest.mark.parametrize(
    ("preset", "epochs", "warmup", "decay", "drop_path", "depth", "group"),
    [
        ("", 200, 20, 0.75, 0.1, 12, 128),
        ("vitb16", 100, 20, 0.65, 0.2, 12, 128),
        ("vitl16", 50, 5, 0.75, 0.4, 24, 64),
    ],
)
def test_ibots_values(preset, epochs, warmup, decay, drop_path, depth, group):
    """evaluation/README.md and classification_layer_decay of bytedance/ibot; the paper's appendix C."""
    config = finetune_ibot_imagenet.get_config(preset).to_dict()
    validate(config)
    assert (config["total_steps"], config["streams"]["images"]["batch_size"]) == (epochs * EPOCH, 1_024)
    rate = config["learning_rate"]
    assert (rate["warmup_steps"], rate["peak"], rate["final"]) == (warmup * EPOCH, 1e-3, 1e-6)
    assert config["encoders"]["image"]["drop_path"] == drop_path
    assert config["optimizer"]["weight_decay"] == 0.05
    view = config["streams"]["images"]["data"]["fields"]["crops"]
    assert (view["mixup"], view["cutmix"], view["mix_group"]) == (0.8, 1.0, group)
    assert config["streams"]["images"]["objectives"]["classification"]["label_smoothing"] == 0.1
    multipliers = LrMultipliers.build(
        config["lr_multipliers"], config["total_steps"], build.encoder_modules(config)
    )
    found = multipliers.factors(shapes(config), 0)
    tower = found["encoders"]["image"]
    assert tower["class_token"] == pytest.approx(decay ** (depth + 1))
    stack = tower["layer_stack"]["mlp_in"]["kernel"]
    np.testing.assert_allclose(stack.ravel(), decay ** np.arange(depth, 0, -1.0), rtol=1e-5)
    assert found["heads"]["classification"]["linear"]["kernel"] == 1


def test_what_beits_code_names_is_not_decayed():
    config = finetune_ibot_imagenet.get_config().to_dict()
    pattern = re.compile("|".join(config["optimizer"]["weight_decay_exclude"]))
    tower = config["encoders"]["image"] | dict(scan=False, depth=1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(config | dict(encoders=dict(image=tower)))):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert bool(pattern.search(name)) == (leaf.ndim < 2 or "position" in name), name


@pytest.mark.parametrize(
    ("preset", "rate", "train", "evaluate", "tower"),
    [("frozen", 0.1, 289, 360, 0.0), ("", 0.01, 475, 600, 0.1), ("base", 0.01, 475, 600, 0.1)],
)
def test_aligns_values(preset, rate, train, evaluate, tower):
    """Section 5.3 of the paper."""
    config = finetune_align_imagenet.get_config(preset).to_dict()
    validate(config)
    optimizer = config["optimizer"]
    assert (optimizer["name"], optimizer["b1"], optimizer["weight_decay"]) == ("sgd", 0.9, 0.0)
    assert (config["streams"]["images"]["batch_size"], config["total_steps"]) == (1_024, 100 * EPOCH)
    schedule = schedules.build(config["learning_rate"], config["total_steps"])
    epochs = {0: 1, 29: 1, 30: 0.2, 60: 0.04, 90: 0.008, 99: 0.008}
    for epoch, factor in epochs.items():
        assert schedule(epoch * EPOCH) == pytest.approx(rate * factor), epoch
    crop, transform = config["streams"]["images"]["data"]["fields"]["crops"]["crop"], config["eval_transform"]
    assert (crop["size"], transform["size"]) == (train, evaluate)
    assert evaluate / transform["resize"] == pytest.approx(0.875, abs=2e-3)
    assert config["lr_multipliers"] == (("encoders/", tower),)
    # The second run goes on with the first one's classifier.
    assert config["init_from"]["exclude"] == (("heads/",) if preset == "frozen" else ())
    pretraining = (align_base if preset == "base" else align_l2).get_config().to_dict()
    assert config["encoders"]["image"] == pretraining["encoders"]["image"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_presets_have_the_keys_of_the_recipe_and_are_valid(recipe, preset):
    full, small = (RECIPES[recipe].get_config(name).to_dict() for name in ("", preset))
    validate(small)
    assert full.keys() == small.keys()
    for key in ("mesh", "optimizer", "learning_rate", "checkpoint", "failure_limits", "eval_transform"):
        assert full[key].keys() == small[key].keys()
    assert full["encoders"]["image"].keys() == small["encoders"]["image"].keys()
    assert not small["requires"]["weights"]


def test_what_a_machine_lacks_is_listed_with_the_pictures_to_judge_on():
    config = finetune_align_imagenet.get_config().to_dict()
    with pytest.raises(requirements.RequirementsError) as caught:
        requirements.check_requirements(config, "configs/finetune_align_imagenet.py")
    message = str(caught.value)
    for key in ("streams.images.data.source.data_dir", "evals.imagenet.data.data_dir", "init_from.path"):
        assert f"config.{key} (not set)" in message
    assert message.endswith("Runs here: --config=configs/finetune_align_imagenet.py:demo")
