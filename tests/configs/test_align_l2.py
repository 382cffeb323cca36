"""ALIGN's recipe: the published values, and presets that are small changes to it."""

import pytest

from big_ssl.data import sources, tokenizers
from big_ssl.models import efficientnet
from big_ssl.parallel.mesh import make_mesh
from big_ssl.train_tokenizer import TRAINERS
from big_ssl.training import build
from configs import align_base
from configs.align_l2 import get_config


def test_the_published_values():
    config = get_config().to_dict()
    pairs = config["streams"]["pairs"]
    assert (pairs["batch_size"], config["total_steps"]) == (16_384, 1_200_000)
    crop = pairs["data"]["fields"]["image"]["crop"]
    assert (crop["resize"], crop["size"], crop["resize_mode"]) == (346, 289, "stretch")
    assert [config["eval_transform"][key] for key in crop if key != "kind"] == [346, "stretch", 289]
    assert (config["encoders"]["text"]["depth"], config["encoders"]["text"]["width"]) == (24, 1024)
    assert config["tokenizer"]["length"] == 64
    contrastive = pairs["objectives"]["contrastive"]
    assert (contrastive["label_smoothing"], contrastive["temperature_form"]) == (0.1, "raw")
    rate = config["learning_rate"]
    assert (rate["kind"], rate["peak"], rate["warmup_steps"], rate["final"]) == ("linear", 1e-3, 10_000, 0.0)
    assert (config["optimizer"]["name"], config["optimizer"]["weight_decay"]) == ("lamb", 1e-5)


@pytest.mark.parametrize(("preset", "scan", "remat"), [("", True, "full"), ("demo", False, "none")])
def test_the_towers_are_built_for_their_size(preset, scan, remat):
    """Large ones in a loop and recomputed, small ones as they compute fastest."""
    system = build.system(get_config(preset).to_dict(), make_mesh(dict(data=-1, fsdp=1, tensor=1)))
    assert {(tower.scan, tower.remat) for tower in system.encoders.values()} == {(scan, remat)}


@pytest.mark.parametrize("preset", ["", "demo", "tiny"])
def test_the_embedding_is_as_wide_as_the_image_tower(preset):
    config = get_config(preset).to_dict()
    width = config["encoders"]["image"]["width"]
    dim = config["streams"]["pairs"]["objectives"]["contrastive"]["embed_dim"]
    assert dim == efficientnet.round_channels(320, width)
    variant = efficientnet.VARIANTS["l2"]
    assert preset or (width, config["encoders"]["image"]["depth"]) == variant


def test_the_multilingual_one_differs_in_its_vocabulary_alone():
    full, config = get_config().to_dict(), get_config("multilingual").to_dict()
    assert config.pop("name") == full.pop("name") + "_multilingual"
    tokens = config.pop("tokenizer")
    assert (tokens["size"], tokens["length"]) == (250_000, full.pop("tokenizer")["length"])
    assert config == full
    with pytest.raises(
        ValueError, match="align_base: no preset 'multilingual'; there are demo, tiny and rehearsal"
    ):
        align_base.get_config("multilingual")


def test_its_vocabulary_tells_words_apart_that_differ_in_accents_and_vowel_signs(tmp_path):
    source = sources.EmojiPairs(["fluent-flat"], languages=("fr", "hi", "ja"))
    texts = (source[i]["noisy"] for i in range(len(source)))
    kind, path = get_config("multilingual").tokenizer.kind, tmp_path / "vocabulary"
    path.write_bytes(TRAINERS[kind](texts, 2_000))
    tokens = tokenizers.TOKENIZERS[kind](str(path), 16)
    for one, other in (("फल", "फूल"), ("pêche", "péché"), ("ハート", "パート")):
        ids = tokens([one, other])["ids"]
        assert not any(map(tokens.is_empty, ids))
        assert ids[0].tolist() != ids[1].tolist()


@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_presets_have_the_keys_of_the_recipe(preset):
    full, small = get_config().to_dict(), get_config(preset).to_dict()
    assert full.keys() == small.keys()
    for key in ("mesh", "optimizer", "learning_rate", "checkpoint", "failure_limits", "encoders"):
        assert full[key].keys() == small[key].keys()


def test_an_unknown_preset_is_named():
    with pytest.raises(
        ValueError, match="align_l2: no preset 'dmo'; there are demo, tiny, rehearsal and multilingual"
    ):
        get_config("dmo")


def test_a_preset_is_a_fresh_copy():
    get_config("tiny").total_steps = 3
    assert get_config("tiny").total_steps != 3
