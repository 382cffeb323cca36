"""ALIGN against PyTorch on the same random weights, through the files it is published in."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from big_ssl.convert import convert
from big_ssl.data import preprocessing
from big_ssl.inference import Model, load
from big_ssl.weights.formats import read_checkpoint

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import align_peers, peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402

pytestmark = pytest.mark.parity

# Two float32 networks that add in another order; what is compared is of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)


def assert_same(model, peer, images):
    """Features, the last map and logits."""
    ids, mask = align_peers.texts()
    expected = align_peers.run(peer, images, ids, mask)
    image, text = model.encode_image(images, resize=False), model.encode_text(ids, mask)
    np.testing.assert_allclose(image, expected["image"], **CLOSE)
    np.testing.assert_allclose(text, expected["text"], **CLOSE)
    parity_figure("hf_align", "architecture", image, expected["image"])
    parity_figure("hf_align", "architecture", text, expected["text"])
    scale = expected["patches"].std()
    np.testing.assert_allclose(
        model.patch_features(images, resize=False) / scale, expected["patches"] / scale, **CLOSE
    )
    temperature = model.variables["params"]["heads"]["contrastive"]["temperature"]
    np.testing.assert_allclose(image @ text.T / temperature, expected["logits"], **CLOSE)
    parity_figure("hf_align", "heads", image @ text.T / temperature, expected["logits"])
    assert np.abs(expected["image"][0] - expected["image"][1]).max() > 0.01


@pytest.mark.parametrize("shape", [align_peers.SMALL, align_peers.OTHER], ids=["published", "other"])
def test_a_small_one_and_back_is_bit_identical(shape, tmp_path):
    peer = align_peers.hf_align(shape, seed=3)
    peer.save_pretrained(tmp_path / "theirs")
    convert("hf_align", tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", "hf_align", tmp_path / "back", {})
    back = transformers.AlignModel.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    expected, found = peers.state(peer), peers.state(back)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if not name.startswith("text_model.pooler."):  # unused, and so not written
            np.testing.assert_array_equal(found[name], value, err_msg=name)
            parity_figure("hf_align", "export", found[name], value)
    images, texts = align_peers.images(), align_peers.texts()
    for key, value in align_peers.run(peer, images, *texts).items():
        np.testing.assert_array_equal(align_peers.run(back, images, *texts)[key], value)
    assert_same(load(tmp_path / "ours"), peer, images)


@pytest.mark.slow
def test_the_published_size(tmp_path):
    """EfficientNet-B7 at 289 pixels with BERT-base, as kakaobrain/align-base."""
    peer = align_peers.hf_align(align_peers.BASE, image_size=289, text={}, seed=4)
    peer.save_pretrained(tmp_path)
    config, ours = read_checkpoint("hf_align", tmp_path)
    assert sum(array.size for name, array in ours.items() if name.startswith("params/encoders/image")) == (
        62_143_440
    )
    # On one device: each has a copy of the weights.
    model = Model(config, unflatten_dict(ours, sep="/"), devices=jax.devices()[:1])
    images = align_peers.images(289)
    assert model.patch_features(images, resize=False).shape == (2, 9, 9, 640)
    assert_same(model, peer, images)


@pytest.mark.parametrize("shape", [(40, 60), (361, 200), (289, 289)])
def test_preprocessing_is_transformers_own(shape, tmp_path):
    """The published preprocessor_config.json, and ours that stands for it."""
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )

    published = dict(do_center_crop=True, rescale_factor=1 / 127.5, rescale_offset=True, resample=2)
    published |= dict(do_normalize=False, include_top=False)
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    peer = align_peers.hf_align(align_peers.THIN)
    peer.save_pretrained(tmp_path / "theirs")
    EfficientNetImageProcessorPil(**published).save_pretrained(tmp_path / "theirs")
    expected = EfficientNetImageProcessorPil(**published)(list(images), return_tensors="np")["pixel_values"]
    convert("hf_align", tmp_path / "theirs", "hf_align", tmp_path / "back", {})
    config, _ = read_checkpoint("hf_align", tmp_path / "theirs")
    view = config["views"]["image"]
    found = (preprocessing.of(config)(images) / 255 - np.asarray(view["mean"])) / np.asarray(view["std"])
    # float32 of float64, near 1.
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=0, atol=1e-6)
    parity_figure("hf_align", "preprocessing", found.transpose(0, 3, 1, 2), expected)
    written = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    back = EfficientNetImageProcessorPil(**written)(list(images), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(back, expected, rtol=0, atol=1e-6)
