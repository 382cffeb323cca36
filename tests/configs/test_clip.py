"""CLIP's recipes: the published values of all models, and presets that are small changes to them."""

import re

import jax
import pytest

from big_ssl.config import validate
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build
from configs import clip

# Model, learning rate (Tables 18 to 20), millions of parameters as published.
PUBLISHED = [
    ("rn50", 5e-4, 102.0),
    ("rn101", 5e-4, 119.7),
    ("rn50x4", 5e-4, 178.3),
    ("rn50x16", 4e-4, 291.0),
    ("rn50x64", 3.6e-4, 623.3),
    ("vitb32", 5e-4, 151.3),
    ("vitb16", 5e-4, 149.6),
    ("vitl14", 4e-4, 427.6),
    ("vitl14_336", 2e-5, 427.9),
]


def get(arg=""):
    return clip.get_config(arg).to_dict()


@pytest.mark.parametrize(("model", "rate", "millions"), PUBLISHED)
def test_the_published_values(model, rate, millions):
    config = get(model)
    validate(config)
    pairs = config["streams"]["pairs"]
    assert (pairs["batch_size"], config["tokenizer"]["size"], config["tokenizer"]["length"]) == (
        32_768,
        49_408,
        77,
    )
    assert (config["learning_rate"]["peak"], config["learning_rate"]["warmup_steps"]) == (rate, 2_000)
    assert config["total_steps"] == (12_207 if model == "vitl14_336" else 390_625)
    # Of Table 18: beta2 and epsilon of ResNets, and of ViTs.
    moments = (0.999, 1e-8) if model.startswith("rn") else (0.98, 1e-6)
    assert (config["optimizer"]["b2"], config["optimizer"]["eps"]) == moments
    system = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
    params, _ = jax.eval_shape(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("model", ["vitb32", "vitb16", "vitl14", "rn50x4"])
@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_presets_have_the_keys_of_the_recipe_and_are_valid(model, preset):
    full, small = get(model), get(f"{model},{preset}")
    validate(small)
    assert full.keys() == small.keys()
    for key in ("mesh", "optimizer", "learning_rate", "checkpoint", "failure_limits"):
        assert full[key].keys() == small[key].keys()
    for tower in ("image", "text"):
        assert full["encoders"][tower].keys() == small["encoders"][tower].keys()


def test_gains_biases_and_the_temperature_are_not_decayed():
    """Section 2.5: "all weights that are not gains or biases"."""
    config = get("tiny")
    system = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
    params, _ = jax.eval_shape(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))
    pattern = re.compile("|".join(config["optimizer"]["weight_decay_exclude"]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert bool(pattern.search(name)) == (leaf.ndim < 2), name


def test_the_high_resolution_epoch_asks_for_weights():
    config = get("vitl14_336")
    assert config["requires"]["weights"]
    crop = config["streams"]["pairs"]["data"]["fields"]["image"]["crop"]
    assert config["encoders"]["image"]["image_size"] == crop["resize"] == crop["size"] == 336
    assert config["eval_transform"]["size"] == 336
