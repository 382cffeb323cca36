"""SigLIP 2 of fixed resolution: transformers' SiglipModel with Gemma's vocabulary, texts included."""

import numpy as np
import pytest

import big_ssl
from big_ssl import inference

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import clip_peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402

pytestmark = pytest.mark.parity

TEXTS = ["A photo, of a Cat!", "a dog", "Ein Haus, zwei"]
SIZE = 256_000


def gemma_tokenizer():
    """transformers' tokenizer of SigLIP 2, as large as the published one; letters, and two merges."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127)), "▁a", "ca"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    words += [f"▁word▁{i}" for i in range(SIZE - len(words))]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.Siglip2Tokenizer(vocab=vocabulary, merges=[("▁", "a"), ("c", "a")])


def test_features_of_images_and_texts(tmp_path):
    peer, tokenizer = clip_peers.hf_siglip(seed=3, vocab_size=SIZE), gemma_tokenizer()
    peer.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # big_vision's texts of SigLIP 2 end with <eos>, and are padded on the right.
    length = peer.config.text_config.max_position_embeddings
    pieces = [ids[: length - 1] for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"]]
    ids = np.array([[*row, 1] + [0] * (length - 1 - len(row)) for row in pieces])
    model, images = big_ssl.load(tmp_path), clip_peers.images()
    assert model.config["tokenizer"]["kind"] == "sentencepiece_gemma"
    np.testing.assert_array_equal(model.tokenizer(TEXTS)["ids"], ids)
    parity_figure("hf_siglip", "tokenizer", model.tokenizer(TEXTS)["ids"], ids)
    expected = clip_peers.run_hf(peer, images, ids)
    for name, found in dict(image=model.encode_image(images), text=model.encode_text(TEXTS)).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-4)
        parity_figure("hf_siglip", "architecture", found, expected[name])


def test_variable_resolution_is_refused_by_name(tmp_path):
    layers = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2)
    settings = transformers.Siglip2Config(
        text_config=layers | dict(vocab_size=50), vision_config=layers | dict(patch_size=8, num_patches=4)
    )
    transformers.Siglip2Model(settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'siglip2', of variable resolution \(NaFlex\), is not read"):
        big_ssl.load(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'siglip2'; it must be siglip"):
        inference.load(tmp_path, source="hf_siglip")
