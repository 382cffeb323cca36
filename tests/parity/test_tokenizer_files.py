"""The files that transformers' tokenizers save, tokenizer_config.json included: our ids are theirs."""

import json

import numpy as np
import pytest

from big_ssl.data import clip_bpe, sentence_piece, tokenizers
from big_ssl.weights import hf_tokenizer_config, json_files
from big_ssl.weights.errors import WeightsError
from tests.parity.figures import parity_figure

transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

pytestmark = pytest.mark.parity

TEXTS = [
    "A photo of a cat",
    "two dogs, on the Grass!",
    "",
    "the quick brown fox jumps over 2 lazy dogs again",
]
LENGTH = 10


def bert(folder):
    words = tokenizers.train_wordpiece(TEXTS * 5, 200)
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)}), "wordpiece"


def clip(folder):
    (folder / "merges.txt").write_bytes(clip_bpe.train(TEXTS * 5, 560))
    vocabulary, merges = clip_bpe.read_vocabulary(str(folder / "merges.txt"))
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges), "clip_bpe"


def siglip(folder):
    (folder / "in.model").write_bytes(sentence_piece.train(TEXTS * 20, 60, style=sentence_piece.SIGLIP))
    return transformers.SiglipTokenizer(str(folder / "in.model")), "sentencepiece"


def xlm(folder):
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁cat", "▁A", "<mask>"]
    vocabulary = [(word, -float(i)) for i, word in enumerate(words)]
    return transformers.XLMRobertaTokenizer(vocab=vocabulary), "sentencepiece_xlm"


def read(folder, peer, kind):
    """Our tokenizer over the saved files, and the length that it takes from them."""
    files = json_files.read(folder, [hf_tokenizer_config.FILE])
    name = "spiece.model" if kind == "sentencepiece" else "tokenizer.json"
    wanted = dict(kind=kind, vocabulary=str(folder / name), size=len(peer), length=77)
    return tokenizers.build(hf_tokenizer_config.read(files, wanted))


# The formats whose tokenizers these are.
FORMATS = {bert: ("hf_align", "hf_bert"), clip: ("hf_clip",), siglip: ("hf_siglip",), xlm: ("hf_metaclip2",)}


@pytest.mark.parametrize("make", FORMATS)
def test_the_ids_are_theirs(make, tmp_path):
    peer, kind = make(tmp_path)
    peer.model_max_length = LENGTH
    peer.save_pretrained(tmp_path / "saved")
    expected = peer(TEXTS, padding="max_length", truncation=True)
    ids, mask = np.array(expected["input_ids"]), np.array(expected["attention_mask"]) == 1
    found = read(tmp_path / "saved", peer, kind)(TEXTS)
    assert found["ids"].shape == (len(TEXTS), LENGTH)
    # CLIP's padding comes after the end of a text, where a causal encoder does not look.
    shown = mask if kind == "clip_bpe" else np.ones_like(mask)
    np.testing.assert_array_equal(found["ids"][shown], ids[shown])
    for format_ in FORMATS[make]:
        parity_figure(format_, "tokenizer", found["ids"][shown], ids[shown])
    if kind != "sentencepiece":  # which sees its padding
        np.testing.assert_array_equal(found["mask"], mask)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (bert, dict(do_lower_case=False)),
        (bert, dict(padding_side="left")),
        (clip, dict(padding_side="left")),
        (siglip, dict(do_lower_case=False)),
        (siglip, dict(pad_token="<unk>")),
        (xlm, dict(truncation_side="left")),
    ],
)
def test_settings_that_change_transformers_ids_are_refused(make, changes, tmp_path):
    peer, kind = make(tmp_path)
    peer.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / hf_tokenizer_config.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    changed = type(peer).from_pretrained(tmp_path / "saved")
    options = dict(padding="max_length", truncation=True, max_length=8)
    assert changed(TEXTS, **options)["input_ids"] != peer(TEXTS, **options)["input_ids"]
    (key,) = changes
    with pytest.raises(WeightsError, match=key):
        read(tmp_path / "saved", peer, kind)
