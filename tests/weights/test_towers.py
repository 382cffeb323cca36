"""Towers that transformers stores without their other: of images and of texts."""

import json

import numpy as np
import pytest

import big_ssl
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.formats import read_checkpoint, write_checkpoint
from big_ssl.weights.guess import guess
from big_ssl.weights.tensor_files import write_safetensors
from tests.parity import goldens

KINDS = ("hf_clip", "hf_siglip")
PROJECTIONS = dict(vision="visual_projection.weight", text="text_projection.weight")


def write_tower(kind, tower, folder, prefix=True, projection=False, **changes):
    """Writes one tower of the golden model; changes: of its config. Returns the whole's (config, weights)."""
    whole = read_checkpoint(kind, goldens.write_checkpoint(kind, folder))
    tensors, _ = goldens.golden(kind)
    own = f"{tower}_model."
    kept = {
        name if prefix else name.removeprefix(own): np.asarray(array)
        for name, array in tensors.items()
        if name.startswith(own) or (projection and name == PROJECTIONS[tower])
    }
    write_safetensors(folder / "model.safetensors", kept, {})
    config = json.loads((folder / "config.json").read_text())
    model_type = f"{kind.removeprefix('hf_')}_{tower}_model"
    stated = config[f"{tower}_config"] | dict(model_type=model_type, projection_dim=12) | changes
    (folder / "config.json").write_text(json.dumps(stated))
    return whole


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_vision_tower_alone_is_an_image_encoder(kind, prefix, tmp_path):
    """transformers 5 writes its names without their prefix."""
    whole, expected = write_tower(kind, "vision", tmp_path, prefix)
    alone, ours = read_checkpoint(guess(tmp_path), tmp_path)
    assert (alone["head"], alone["tokenizer"], "embedding_head" in alone) == (None, None, False)
    assert alone["encoders"] == dict(image=whole["encoders"]["image"])
    assert set(ours) == {path for path in expected if path.startswith("params/encoders/image/")}
    assert all(np.array_equal(ours[path], expected[path]) for path in ours)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_tower_alone_is_a_text_encoder(kind, prefix, tmp_path):
    whole, expected = write_tower(kind, "text", tmp_path, prefix)
    alone, ours = read_checkpoint(guess(tmp_path), tmp_path)
    assert (alone["head"], alone["views"], alone["image_size"]) == (None, None, None)
    assert alone["encoders"] == dict(text=whole["encoders"]["text"])
    assert alone["tokenizer"] == whole["tokenizer"]
    encoder = {path for path in expected if path.startswith("params/encoders/text/")}
    assert all(np.array_equal(ours[path], expected[path]) for path in encoder)
    head = {path.split("/")[-1] for path in ours.keys() - encoder}
    assert head == (set() if kind == "hf_clip" else {"kernel", "bias"})


@pytest.mark.parametrize(("tower", "encode"), [("vision", "encode_image"), ("text", "encode_text")])
def test_a_projected_tower_gives_the_whole_models_embeddings(tower, encode, tmp_path):
    goldens.write_checkpoint("hf_clip", tmp_path / "whole")
    write_tower("hf_clip", tower, tmp_path / "tower", projection=True)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (2, 24, 24, 3), np.uint8) if tower == "vision" else golden_ids()
    whole, model = big_ssl.load(tmp_path / "whole"), big_ssl.load(tmp_path / "tower")
    expected = getattr(whole, encode)(inputs)
    np.testing.assert_array_equal(getattr(model, encode)(inputs), expected)
    config, ours = read_checkpoint("hf_clip", tmp_path / "tower")
    write_checkpoint("big_ssl", tmp_path / "ours", config, ours)
    np.testing.assert_array_equal(getattr(big_ssl.load(tmp_path / "ours"), encode)(inputs), expected)
    assert model.methods == (("encode_text",) if tower == "text" else model.methods)
    assert "zero_shot" not in model.methods


def golden_ids():
    return goldens.golden("hf_clip")[1]["ids"]


def test_a_text_tower_refuses_images_in_one_line(tmp_path):
    write_tower("hf_clip", "text", tmp_path)
    model, images = big_ssl.load(tmp_path), np.zeros((1, 24, 24, 3), np.uint8)
    message = r"^this model has no image encoder: it embeds texts alone; it has encode_text$"
    for method in (model.encode_image, model.pooled_features, lambda x: model.zero_shot(x, ["a"])):
        with pytest.raises(ValueError, match=message):
            method(images)
    with pytest.raises(
        ValueError, match=r"^this model has no image encoder: it embeds texts alone; it has encode_text$"
    ):
        model.patch_features(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(architectures=["CLIPTextModelWithProjection"]), "the weights lack text_projection.weight"),
        (
            dict(projection=True, architectures=["CLIPTextModel"]),
            r"architectures is \['CLIPTextModel'\]; the weights have text_projection.weight",
        ),
        (dict(projection=True, projection_dim=13), "projection_dim is 13; the weights have 12"),
        (
            dict(model_type="altclip_text_model"),
            "model_type is 'altclip_text_model'; it must be clip, ",
        ),
        (dict(architectures="CLIPTextModel"), "architectures is 'CLIPTextModel'; it must be a list of texts"),
        (dict(num_hidden_layers=3), "text_config.num_hidden_layers is 3; the weights have 2"),
    ],
)
def test_a_towers_config_that_the_weights_contradict_is_refused(options, message, tmp_path):
    write_tower("hf_clip", "text", tmp_path, **options)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint("hf_clip", tmp_path)


def test_a_siglip_text_towers_projection_is_compared(tmp_path):
    write_tower("hf_siglip", "text", tmp_path, projection_size=25)
    with pytest.raises(WeightsError, match="projection_size is 25; the weights have 24"):
        read_checkpoint("hf_siglip", tmp_path)


def test_a_text_tower_is_exported_to_no_public_format(tmp_path):
    write_tower("hf_clip", "text", tmp_path)
    with pytest.raises(WeightsError, match="hf_clip is for models of image and text; this is one of text"):
        write_checkpoint("hf_clip", tmp_path / "out", *read_checkpoint("hf_clip", tmp_path))


@pytest.mark.parametrize("places", [(), ("image", "text")])
def test_a_model_without_a_head_has_one_encoder(places, tmp_path):
    config, ours = read_checkpoint("hf_clip", goldens.write_checkpoint("hf_clip", tmp_path / "in"))
    config |= dict(head=None, encoders={place: config["encoders"][place] for place in places})
    with pytest.raises(WeightsError, match="a model with a head has image and text, another one of them"):
        write_checkpoint("big_ssl", tmp_path / "out", config, ours)
