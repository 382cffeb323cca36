"""SigLIP's recipe: the published values, and presets that are small changes to it."""

import re

import jax
import pytest

from big_ssl.config import validate
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build
from configs import siglip


def params_of(config):
    system = build.system(config, make_mesh(config["mesh"], jax.devices()[:1]))
    return jax.eval_shape(lambda: system.init(jax.random.key(0), batches.abstract_batch(config)))[0]


def test_the_published_values():
    config = siglip.get_config().to_dict()
    validate(config)
    pairs = config["streams"]["pairs"]
    assert pairs["batch_size"] * config["total_steps"] == pytest.approx(40e9, rel=1e-6)
    assert (pairs["batch_size"], config["tokenizer"]["size"]) == (32_768, 32_000)
    contrastive = pairs["objectives"]["contrastive"]
    assert (contrastive["temperature"], contrastive["temperature_form"]) == (1 / 10, "log")
    assert (contrastive["logit_bias"], contrastive["weight"]) == (-10.0, 1.0)
    assert config["optimizer"]["b2"] == 0.95
    # big_vision's weight decay is what this one is times the peak rate.
    assert config["optimizer"]["weight_decay"] * config["learning_rate"]["peak"] == pytest.approx(1e-4)


def test_it_has_as_many_parameters_as_the_released_model():
    """siglip-base-patch16-224 has 203,155,970."""
    params = params_of(siglip.get_config().to_dict())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 203_155_970


def test_kernels_alone_are_decayed():
    config = siglip.get_config("tiny").to_dict()
    pattern = re.compile("|".join(config["optimizer"]["weight_decay_exclude"]))
    for path, _ in jax.tree_util.tree_leaves_with_path(params_of(config)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert bool(pattern.search(name)) != name.endswith("kernel"), name


@pytest.mark.parametrize("preset", ["demo", "tiny", "rehearsal"])
def test_presets_are_valid_and_embed_at_the_width_of_the_image_encoder(preset):
    small = siglip.get_config(preset).to_dict()
    validate(small)
    # The image has no projection, so that the encoder's width is the embedding's.
    dim = small["streams"]["pairs"]["objectives"]["contrastive"]["embed_dim"]
    assert dim == small["encoders"]["image"]["width"]
    params_of(small)
