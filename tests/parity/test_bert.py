"""BERT, through the files that transformers saves, on random weights."""

import numpy as np
import pytest

import big_ssl

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("model", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_the_state_of_the_first_token(model, tmp_path):
    peer = getattr(transformers, model)(transformers.BertConfig(**peers.BERT, attn_implementation="eager"))
    peers.randomise(peer).eval().save_pretrained(tmp_path)
    ids, mask = peers.bert_inputs()
    expected = peers.run_bert(getattr(peer, "bert", peer), ids, mask)[:, 0]
    found = big_ssl.load(tmp_path).encode_text(ids, mask, normalize=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    parity_figure("hf_bert", "architecture", found, expected)
    assert expected.std() > 0.5
