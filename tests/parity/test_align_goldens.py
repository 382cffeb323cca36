"""ALIGN, from file to features, against what tests/parity/make_goldens.py has written down."""

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from big_ssl.convert import convert
from big_ssl.inference import Model
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.tensor_files import read_tensors
from tests.parity.goldens import golden, write_checkpoint

# Two float32 networks that add in another order; what is compared is of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config, ours = read_checkpoint("hf_align", write_checkpoint("hf_align", tmp_path_factory.mktemp("align")))
    return Model(config, unflatten_dict(ours, sep="/"))


def test_features_map_and_logits(model):
    expected = golden("hf_align")[1]
    image = model.encode_image(expected["images"], resize=False)
    text = model.encode_text(expected["ids"], expected["mask"])
    np.testing.assert_allclose(image, expected["image"], **CLOSE)
    np.testing.assert_allclose(text, expected["text"], **CLOSE)
    patches = model.patch_features(expected["images"], resize=False)
    assert patches.shape == (2, 2, 2, 64)  # by SAME, 75 pixels would leave 3 x 3
    scale = expected["patches"].std()
    np.testing.assert_allclose(patches / scale, expected["patches"] / scale, **CLOSE)
    temperature = model.variables["params"]["heads"]["contrastive"]["temperature"]
    np.testing.assert_allclose(image @ text.T / temperature, expected["logits"], **CLOSE)
    assert np.abs(expected["image"][0] - expected["image"][1]).max() > 0.01


def test_there_and_back_is_bit_identical(tmp_path):
    path = write_checkpoint("hf_align", tmp_path / "theirs")
    (path / "vocab.txt").write_text("[PAD]\n")
    convert("hf_align", path, "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", "hf_align", tmp_path / "back", {})
    found = read_tensors(tmp_path / "back" / "model.safetensors")
    unused = ("num_batches_tracked", "pooler.dense.weight", "pooler.dense.bias")
    expected = {name: x for name, x in golden("hf_align")[0].items() if not name.endswith(unused)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert (tmp_path / "back" / "vocab.txt").read_text() == "[PAD]\n"


def test_no_weight_of_the_golden_file_is_a_default():
    """Zeros and ones would hide what a mapping forgets."""
    for key, value in golden("hf_align")[0].items():
        if not key.endswith("num_batches_tracked"):
            assert value.std() > 0 or value.size == 1, key
            assert not np.isin(value, (0, 1)).all(), key
