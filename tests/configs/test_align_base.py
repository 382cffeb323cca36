"""The recipes beside ALIGN's own: COYO's reproduction, and fine-tuning for retrieval."""

import json

import jax
import jax.numpy as jnp
import pytest

from big_ssl.config import validate
from big_ssl.models import efficientnet, encoders
from big_ssl.training import trained
from big_ssl.weights import architecture
from big_ssl.weights.formats import FORMATS
from configs import align_base, align_l2, finetune_align_retrieval


def test_coyos_values():
    """Of kakaobrain/coyo-align: conf/coyo700m.flags, conf/b7-base.flags, main.py."""
    config = align_base.get_config().to_dict()
    validate(config)
    pairs, rate = config["streams"]["pairs"], config["learning_rate"]
    assert (pairs["batch_size"], config["total_steps"]) == (65_536, 300_000)
    assert (rate["kind"], rate["peak"], rate["warmup_steps"], rate["final"]) == ("linear", 2e-3, 40_000, 0.0)
    assert (config["optimizer"]["name"], config["optimizer"]["weight_decay"]) == ("lamb", 1e-5)
    assert (
        config["optimizer"]["weight_decay_exclude"] == config["optimizer"]["trust_ratio_exclude"] == ("_bn/",)
    )
    assert (config["tokenizer"]["size"], config["tokenizer"]["length"]) == (30_522, 64)
    image = config["encoders"]["image"]
    assert (image["bn_group"], image["padding"]) == (16, "fixed")
    assert (image["width"], image["depth"]) == efficientnet.VARIANTS["b7"]
    assert pairs["objectives"]["contrastive"]["embed_dim"] == efficientnet.round_channels(320, image["width"])


def test_the_text_tower_is_bert_base():
    """109,482,240 parameters as published, less 448 of 512 positions and the pooler."""
    tower = encoders.build(align_base.get_config().encoders.text, "float32", 30_522, 64)
    ids = jnp.zeros((1, 64), int)
    params = jax.eval_shape(tower.init, jax.random.key(0), ids, ids == 0)["params"]
    found = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found == 109_482_240 - 448 * 768 - (768 * 768 + 768)


def test_it_differs_from_the_papers_where_the_papers_differ():
    """One text for both, whose demos differ in name and in what pads odd maps, of which they have none; the
    smallest preset, in the size of its pictures too, for fixed zeros leave nothing of 16 pixels."""
    for preset in ("demo", "tiny"):
        base, l2 = (module.get_config(preset).to_dict() for module in (align_base, align_l2))
        validate(base)
        assert base.pop("name") == l2.pop("name").replace("align", "align_base")
        assert base["encoders"]["image"].pop("padding") == "fixed"
        base["mesh"].pop("fsdp"), l2["mesh"].pop("fsdp")
        images = [config["streams"]["pairs"]["data"]["fields"].pop("image") for config in (base, l2)]
        transforms = [config.pop("eval_transform") for config in (base, l2)]
        assert (images[0] == images[1]) == (transforms[0] == transforms[1]) == (preset == "demo")
        assert base == l2


def test_what_it_trains_has_the_layout_of_the_published_weights():
    config = trained.describe(json.loads(align_base.get_config().to_json()))
    files = FORMATS["hf_align"].describe(architecture.with_defaults(config))
    described, preprocessor = files["config.json"], files["preprocessor_config.json"]
    vision, text = described["vision_config"], described["text_config"]
    assert (described["projection_dim"], vision["hidden_dim"], vision["image_size"]) == (640, 640, 289)
    assert (vision["width_coefficient"], vision["depth_coefficient"]) == (2.0, 3.1)
    assert vision["depthwise_padding"] == []
    assert (text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]) == (768, 12, 30_522)
    assert preprocessor["size"] == dict(height=346, width=346)
    assert preprocessor["crop_size"] == dict(height=289, width=289)
    assert preprocessor["image_mean"] == preprocessor["image_std"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("arg", "steps", "model"),
    [
        ("", 6_000, align_l2),
        ("flickr30k", 3_000, align_l2),
        ("base", 6_000, align_base),
        ("base,flickr30k", 3_000, align_base),
    ],
)
def test_fine_tuning_is_the_recipe_with_a_lower_rate(arg, steps, model):
    config, full = finetune_align_retrieval.get_config(arg).to_dict(), model.get_config().to_dict()
    validate(config)
    assert (config["total_steps"], config["streams"]["pairs"]["batch_size"]) == (steps, 2_048)
    rate = config["learning_rate"]
    assert (rate["kind"], rate["peak"], rate["warmup_steps"]) == ("linear", 1e-5, 0)
    assert config["requires"]["weights"]
    for key in ("encoders", "optimizer", "tokenizer", "eval_transform", "lr_multipliers"):
        assert config[key] == full[key]


def test_the_tiny_one_validates():
    validate(finetune_align_retrieval.get_config("tiny").to_dict())
