"""MetaCLIP 2, and towers alone, as transformers saves them, on random weights: of images and of texts, with a
projection and without."""

import json

import numpy as np
import pytest

import big_ssl

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import clip_peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402

pytestmark = pytest.mark.parity

CLOSE = dict(rtol=1e-4, atol=1e-4)
IDS = clip_peers.ids()


def saved(family, tower, folder, **changes):
    """A tower, such as CLIPTextModel, with random parameters, saved to a folder."""
    side = "Text" if tower.startswith("Text") else "Vision"
    shape = clip_peers.TEXT | dict(eos_token_id=49) if side == "Text" else clip_peers.VISION
    settings = getattr(transformers, f"{family}{side}Config")(**shape | changes)
    peer = clip_peers.randomise(getattr(transformers, f"{family}{tower}")(settings), seed=3)
    peer.save_pretrained(folder)
    return peer


def with_end_2(ids):
    """The ids with 2 for the end of text, 49, and the reverse: so 49 and 2 are at other places."""
    return np.where(ids == 49, 2, np.where(ids == 2, 49, ids))


def assert_close(family, found, expected):
    np.testing.assert_allclose(found, expected, **CLOSE)
    parity_figure(f"hf_{family.lower()}", "architecture", found, expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("family", "tower", "output"),
    [
        ("CLIP", "VisionModel", "pooler_output"),
        ("CLIP", "VisionModelWithProjection", "image_embeds"),
        ("Siglip", "VisionModel", "pooler_output"),
        ("MetaClip2", "VisionModel", "pooler_output"),
        ("MetaClip2", "VisionModelWithProjection", "image_embeds"),
    ],
)
def test_a_vision_tower_gives_transformers_features(family, tower, output, tmp_path):
    peer, images = saved(family, tower, tmp_path, projection_dim=12), clip_peers.images()
    model = big_ssl.load(tmp_path)
    with torch.no_grad():
        expected = peer(clip_peers.pixels(images, model.config["views"]["image"]))[output].numpy()
    assert_close(family, model.encode_image(images, normalize=False), expected)


@pytest.mark.parametrize(
    ("family", "tower", "output"),
    [
        ("CLIP", "TextModel", "pooler_output"),
        ("CLIP", "TextModelWithProjection", "text_embeds"),
        ("Siglip", "TextModel", "pooler_output"),
        ("MetaClip2", "TextModel", "pooler_output"),
        ("MetaClip2", "TextModelWithProjection", "text_embeds"),
    ],
)
@pytest.mark.parametrize("eos_token_id", [49, 2])
def test_a_text_tower_gives_transformers_features(family, tower, output, eos_token_id, tmp_path):
    """2 is the mistaken id of older files of CLIP, which means the largest; in MetaCLIP 2 it is the end."""
    peer = saved(family, tower, tmp_path, projection_dim=12, projection_size=20, eos_token_id=eos_token_id)
    ids = with_end_2(IDS) if family == "MetaClip2" and eos_token_id == 2 else IDS
    with torch.no_grad():
        expected = peer(torch.tensor(ids))[output].numpy()
    model = big_ssl.load(tmp_path)
    assert_close(family, model.encode_text(ids, normalize=False), expected)
    with pytest.raises(ValueError, match=r"no image encoder: it embeds texts alone; it has encode_text$"):
        model.encode_image(clip_peers.images())


def test_metaclip_2(tmp_path):
    peer = clip_peers.hf_metaclip2(seed=3)
    peer.save_pretrained(tmp_path)
    model, images, ids = big_ssl.load(tmp_path), clip_peers.images(), with_end_2(IDS)
    expected = clip_peers.run_hf(peer, images, ids)
    image, text = model.encode_image(images), model.encode_text(ids)
    assert_close("MetaClip2", image, expected["image"])
    assert_close("MetaClip2", text, expected["text"])
    assert_close("MetaClip2", model.patch_features(images), expected["patches"])
    scale = np.exp(model.variables["params"]["heads"]["contrastive"]["logit_scale"])
    np.testing.assert_allclose(scale * image @ text.T, expected["logits"], **CLOSE)
    parity_figure("hf_metaclip2", "heads", scale * image @ text.T, expected["logits"])
    with pytest.raises(ValueError, match=r"put tokenizer\.json or sentencepiece\.bpe\.model beside them"):
        model.encode_text(["a photo"])


def test_a_converted_text_tower_gives_the_same_features(tmp_path):
    from big_ssl.convert import convert

    saved("CLIP", "TextModelWithProjection", tmp_path / "theirs", projection_dim=12)
    convert("hf_clip", tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    expected, found = (big_ssl.load(tmp_path / name).encode_text(IDS) for name in ("theirs", "ours"))
    np.testing.assert_array_equal(found, expected)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["views"] is None
