"""UniCL's recipe: the published models and mixtures, and a demo whose batches have duplicates."""

import jax
import numpy as np
import pytest

from big_ssl.config import validate
from big_ssl.models import swin, text_transformer
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build, streams
from configs import unicl

# The files of release v1.0.
RELEASED = {
    "swint": "in1k in1k_gcc3m in1k_yfcc14m in1k_gcc15m yfcc14m in21k in22k in21k_yfcc14m_half in21k_yfcc14m",
    "swinb": "yfcc14m in21k in21k_yfcc14m_half in21k_yfcc14m in21k_yfcc14m_gcc15m",
}


def get(arg=""):
    return unicl.get_config(arg).to_dict()


def mixture(config):
    """The name of a config's mixture, as released."""
    entries = [entry["source"] for entry in config["streams"]["pairs"]["data"]["sources"]]
    names = ["in1k" if source["name"] == "imagenet2012" else source["name"] for source in entries]
    half = {source["split"] for source in entries} == {"train[:50%]"}
    return "_".join(names + ["half"] * half)


@pytest.mark.parametrize(("model", "variant"), [("swint", "swin_t"), ("swinb", "swin_b")])
def test_all_released_mixtures_of_a_model(model, variant):
    configs = [get(name) for name in unicl.MIXTURES if name.startswith(model)]
    assert sorted(map(mixture, configs)) == sorted(RELEASED[model].split())
    for config in configs:
        validate(config)
        assert config["encoders"]["image"].items() >= swin.VARIANTS[variant].items()
        assert config["encoders"]["text"].items() >= text_transformer.UNICL.items()
        assert config["streams"]["pairs"]["objectives"]["unicl"]["projection_std"] == 0.02
        fields = config["streams"]["pairs"]["data"]["fields"]
        assert (fields["identity"]["class_by"], fields["identity"]["caption_by"]) == ("number", "pair")
        assert (fields["text"]["prompt_words"], fields["text"]["prompt_classes"]) == (0, "all")


def test_a_half_mixture_trains_half_as_long():
    steps = [get(f"swint_in21k_yfcc14m{end}")["total_steps"] for end in ("_half",)] + [get()["total_steps"]]
    assert steps[0] == pytest.approx(steps[1] / 2, rel=1e-3)


def test_a_classs_name_is_its_text_and_a_caption_is_its_own():
    sources = get("swint_in1k_gcc3m")["streams"]["pairs"]["data"]["sources"]
    assert sources[0]["fields"]["text"] == dict(captions={}, class_key="label", label_set="imagenet_unicl")
    assert sources[1]["fields"] == {}


@pytest.mark.parametrize("preset", ["demo", "tiny", "rehearsal"])
def test_presets_have_the_keys_of_the_recipe_and_are_valid(preset):
    full, small = get("swinb"), get(f"swinb,{preset}")
    validate(small)
    assert full.keys() == small.keys()
    for encoder in ("image", "text"):
        assert full["encoders"][encoder].keys() == small["encoders"][encoder].keys()


def test_a_third_of_the_demos_rows_have_a_duplicate():
    config = get("demo")
    loaders = streams.open_streams(config, build.tokenizer(config))
    iterator = batches.iterate(config, loaders, 0, make_mesh(config["mesh"], jax.devices()[:1]))
    keys = np.asarray(next(iterator)["pairs"]["identity"]["key"])
    iterator.close()
    _, place, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    assert 0.25 < (counts[place.ravel()] > 1).mean() < 0.4
