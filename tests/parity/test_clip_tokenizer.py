"""CLIP's tokenizer against open_clip's, with the published vocabulary, where open_clip_torch is installed."""

import numpy as np
import pytest

from big_ssl.data.clip_bpe import ClipBPE, installed_merges
from tests.parity.clip_texts import TEXTS
from tests.parity.figures import parity_figure
from tests.parity.open_clip_tokenizer import simple_tokenizer

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def peer():
    try:
        return simple_tokenizer()
    except ImportError as error:
        pytest.skip(f"{error}; make parity installs what it needs")


@pytest.mark.parametrize("length", [77, 12])
def test_ids_are_open_clips(peer, length):
    ours = ClipBPE(installed_merges(), length)
    assert ours.vocab_size == peer.vocab_size == 49_408
    expected = peer(TEXTS, length).numpy()
    for text, ids, theirs in zip(TEXTS, ours(TEXTS)["ids"], expected, strict=True):
        np.testing.assert_array_equal(ids, theirs, err_msg=ascii(text))
        for format_ in ("openai_clip", "open_clip"):
            parity_figure(format_, "tokenizer", ids, theirs, "open_clip_torch")


def test_random_texts(peer):
    """Of ASCII and one script each; Latin ones hold what looks like a wrong encoding to ftfy."""
    ours, rng = ClipBPE(installed_merges(), 77), np.random.default_rng(0)
    scripts = [
        (0x20, 0x7F),
        (0x370, 0x378),
        (0x400, 0x530),
        (0x620, 0x64B),
        (0x3041, 0x3097),
        (0x4E00, 0x5000),
    ]
    texts = []
    for _ in range(600):
        low, high = scripts[rng.integers(len(scripts))]
        points = np.where(rng.random(20) < 0.6, rng.integers(low, high, 20), rng.integers(0x20, 0x7F, 20))
        texts.append("".join(map(chr, points)))
    expected = peer(texts).numpy()
    for text, ids, theirs in zip(texts, ours(texts)["ids"], expected, strict=True):
        np.testing.assert_array_equal(ids, theirs, err_msg=ascii(text))
        for format_ in ("openai_clip", "open_clip"):
            parity_figure(format_, "tokenizer", ids, theirs, "open_clip_torch")
