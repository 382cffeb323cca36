"""CLIP and SigLIP, from file to features, against what tests/parity/make_goldens.py has written down."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from big_ssl.inference import Model
from big_ssl.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from big_ssl.weights.formats import read_checkpoint
from tests.parity.goldens import golden, write_checkpoint

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def model(request, tmp_path_factory):
    """(kind, our model of the golden weights, read from files as they are published)."""
    kind, format_, options = request.param
    path = write_checkpoint(kind, tmp_path_factory.mktemp(kind))
    config, ours = read_checkpoint(format_, path, options)
    return kind, Model(json.loads(json.dumps(config)), unflatten_dict(ours, sep="/"))


HF = pytest.mark.parametrize(
    "model",
    [("hf_clip", "hf_clip", {}), ("hf_siglip", "hf_siglip", {})],
    indirect=True,
    ids=["clip", "siglip"],
)
RESNET = pytest.mark.parametrize(
    "model", [("clip_resnet", "openai_clip", dict(text_num_heads=2))], indirect=True, ids=["resnet"]
)


@HF
def test_transformers_features_logits_and_loss(model):
    kind, ours = model
    expected = golden(kind)[1]
    image, text = ours.encode_image(expected["images"]), ours.encode_text(expected["ids"])
    np.testing.assert_allclose(image, expected["image"], **CLOSE)
    np.testing.assert_allclose(text, expected["text"], **CLOSE)
    np.testing.assert_allclose(ours.patch_features(expected["images"]), expected["patches"], **CLOSE)
    scale, bias = scale_and_bias(ours)
    np.testing.assert_allclose(scale * image @ text.T + bias, expected["logits"], **CLOSE)
    np.testing.assert_allclose(loss(ours, image, text), expected["loss"], **CLOSE)


@RESNET
def test_resnet_features(model):
    kind, ours = model
    expected = golden(kind)[1]
    found = ours.encode_image(expected["images"], normalize=False)
    np.testing.assert_allclose(found, expected["image"], **CLOSE)
    np.testing.assert_allclose(ours.encode_text(expected["ids"], normalize=False), expected["text"], **CLOSE)
    assert np.abs(expected["image"]).mean() > 0.1


def scale_and_bias(ours):
    """What the similarities are multiplied by, and what is added."""
    head = ours.variables["params"]["heads"]["contrastive"]
    return np.exp(head["logit_scale"]), head.get("logit_bias", 0.0)


def loss(ours, image, text):
    """The objective's term on normalised features, CLIP's at its weight of a half."""
    scale, bias = scale_and_bias(ours)
    if ours.config["head"]["logit_bias"] is None:
        return softmax_contrastive(jnp.asarray(image), jnp.asarray(text), 1 / scale)[0] / 2
    return sigmoid_contrastive(jnp.asarray(image), jnp.asarray(text), 1 / scale, bias)[0]


@pytest.mark.parametrize("kind", ["hf_clip", "hf_siglip", "clip_resnet"])
def test_no_weight_of_a_golden_file_is_a_default(kind):
    """Zeros and ones would hide what a mapping forgets."""
    for key, value in golden(kind)[0].items():
        if not key.endswith("num_batches_tracked"):
            assert value.std() > 0.05 or value.size == 1, key
            assert not np.isin(value, (0, 1)).all(), key
