"""CLIP's tokenizer: ids of a small vocabulary as open_clip gives them, and what may go wrong."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from big_ssl.data import tokenizers
from big_ssl.data.clip_bpe import ClipBPE, byte_characters, clean, installed_merges, train
from tests.parity.clip_texts import TEXTS

DATA = pathlib.Path(__file__).parent
MERGES = str(DATA / "tiny_merges.txt")
LENGTH = 20


@pytest.fixture(scope="module")
def tokenizer():
    return ClipBPE(MERGES, LENGTH)


def test_ids_are_open_clips(tokenizer):
    """As tests/parity/make_goldens.py has written them down."""
    expected = json.loads((DATA / "golden_clip_bpe.json").read_text())
    for text, ids, theirs in zip(TEXTS, tokenizer(TEXTS)["ids"], expected, strict=True):
        assert ids.tolist() == theirs, ascii(text)


def test_half_an_emoji_counts_as_the_replacement_character(tokenizer):
    """Of a whole one, both halves are one character to Python, and stay."""
    half, replaced, whole = tokenizer(["a \ud83d cat", "a \ufffd cat", "a \U0001f600 cat"])["ids"]
    np.testing.assert_array_equal(half, replaced)
    assert not np.array_equal(half, whole)
    assert train(["a \ud83d cat"] * 2, 600) == train(["a \ufffd cat"] * 2, 600)


def test_start_end_padding_and_mask(tokenizer):
    tokens = tokenizer(["a photo of a cat", "", "word " * 200])
    assert (tokens["ids"].dtype, tokens["mask"].dtype) == (np.int32, bool)
    assert tokens["ids"].shape == tokens["mask"].shape == (3, LENGTH)
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    assert (tokens["ids"][:, 0] == start).all()
    assert tokens["ids"][1].tolist() == [start, end] + [0] * (LENGTH - 2)
    assert tokens["mask"][1].tolist() == [True] * 2 + [False] * (LENGTH - 2)
    # Cut to the length, a text keeps its end: without it a causal tower would have nowhere to look.
    assert (tokens["ids"][2, -1], tokens["mask"][2].all()) == (end, True)
    assert (tokens["ids"] == end).sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("mark", ["<|endoftext|>", "<|startoftext|>", "<end_of_text>"])
def test_a_mark_in_a_text_is_mere_letters(mark, tokenizer):
    """An end in the middle would be where the text is read."""
    ids = tokenizer([f"a {mark} cat"])["ids"][0]
    assert ids.tolist().count(tokenizer.vocab_size - 1) == 1
    assert ids[1:].tolist().count(tokenizer.vocab_size - 2) == 0


def test_texts_that_say_nothing(tokenizer):
    for text in ("", "  \n", "\x00", "&nbsp;"):
        assert tokenizer.is_empty(tokenizer([text])["ids"][0])
    for text in ("a", "!", "猫", "cat"):
        assert not tokenizer.is_empty(tokenizer([text])["ids"][0])


def test_clean():
    assert clean("  A &amp;amp; “B”\n\tＣ ﬁ &lt;x&gt; ") == 'a & "b" c fi <x>'
    assert clean("<b> &rsquo;") == "<b> ’"  # ftfy leaves entities alone beside markup


def test_every_byte_has_a_character():
    characters = byte_characters()
    assert len(characters) == len(set(characters)) == 256
    assert characters[:3] == ["!", '"', "#"]
    assert characters[188:190] == ["Ā", "ā"]


def test_gzipped_merges_and_a_longer_file_than_needed(tmp_path, monkeypatch, tokenizer):
    text = (DATA / "tiny_merges.txt").read_bytes()
    (tmp_path / "merges.txt.gz").write_bytes(gzip.compress(text))
    zipped = ClipBPE(str(tmp_path / "merges.txt.gz"), LENGTH)
    np.testing.assert_array_equal(zipped(TEXTS)["ids"], tokenizer(TEXTS)["ids"])
    monkeypatch.setattr("big_ssl.data.clip_bpe._MERGES", 10)
    assert ClipBPE(MERGES, LENGTH).vocab_size == 512 + 10 + 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is none after the first line"),
        (b"#version: 0.2\n", "there is none after the first line"),
        (b"#version: 0.2\na b\na b c\n", "line 3 is 'a b c', not two words"),
        (b"#version: 0.2\nab c\n", "ab c needs ab, which no line before it makes"),
        (b"\x1f\x8bnothing", "can't be read"),
        (b"#version\n\xff\xfe", "can't be read"),
    ],
)
def test_a_bad_file_of_merges_is_one_line(content, message, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        ClipBPE(str(path), LENGTH)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_vocabulary_it_says_what_to_pass(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match=r"give its path, or that of a merges\.txt, or install open_clip"
    ):
        installed_merges()
    with pytest.raises(FileNotFoundError, match="no installed package"):
        tokenizers.vocabulary_path("clip")


def test_the_vocabulary_of_an_installed_package_is_found(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec if name == "clip" else None)
    assert installed_merges() == str(tmp_path / "bpe_simple_vocab_16e6.txt.gz")


def test_the_config_chooses_the_kind(tokenizer):
    options = dict(kind="clip_bpe", vocabulary=MERGES, size=tokenizer.vocab_size, length=LENGTH)
    np.testing.assert_array_equal(tokenizers.build(options)(TEXTS)["ids"], tokenizer(TEXTS)["ids"])
    with pytest.raises(ValueError, match=r"tokenizer\.size is 7; the vocabulary .* has \d+ words"):
        tokenizers.build(options | dict(size=7))
    with pytest.raises(ValueError, match=r"tokenizer\.kind is 'bpe'; there are wordpiece, clip_bpe"):
        tokenizers.build(options | dict(kind="bpe"))


LETTERS = byte_characters()
WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS), "ca", "cat</w>"]
IDS = {word: number for number, word in enumerate(WORDS)}


def write_vocabulary(folder, kind, ids):
    """A vocabulary whose marks come first, as in no file of OpenAI's."""
    if kind == "merges.txt":
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / kind).write_text("#version: 0.2\nc a\nca t</w>\n")
    else:
        marks = [dict(id=ids[mark], content=mark) for mark in WORDS[:2]]
        words = {word: number for word, number in ids.items() if word not in WORDS[:2]}
        merges = [["c", "a"], ["ca", "t</w>"]] if kind == "pairs" else ["c a", "ca t</w>"]
        model = dict(type="BPE", vocab=words, merges=merges)
        kind = "tokenizer.json"
        (folder / kind).write_text(json.dumps(dict(model=model, added_tokens=marks)))
    return str(folder / kind)


@pytest.mark.parametrize("kind", ["merges.txt", "pairs", "lines"])
def test_the_ids_of_a_file_are_heeded(kind, tmp_path):
    tokenizer = ClipBPE(write_vocabulary(tmp_path, kind, IDS), 6)
    assert tokenizer.vocab_size == len(IDS)
    assert tokenizer(["cat"])["ids"][0].tolist() == [IDS["<|startoftext|>"], IDS["cat</w>"], 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cat</w>": None}, "no vocabulary: it must have an id for each word"),
        ({"cat</w>": 0}, "gives one id to two words"),
        ({"<|endoftext|>": ...}, "lacks <|endoftext|>"),
    ],
)
def test_a_bad_vocabulary_is_one_line(change, message, tmp_path):
    ids = {word: number for word, number in (IDS | change).items() if number is not ...}
    path = write_vocabulary(tmp_path, "merges.txt", ids)
    with pytest.raises(ValueError, match=r"vocab\.json") as caught:
        ClipBPE(path, 6)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        [],
        dict(model=None),
        dict(model=dict(type="BPE", vocab={})),
        dict(model=dict(type="BPE", vocab={}, merges=["a"])),
        dict(model=dict(type="BPE", vocab={}, merges=[], added_tokens=[{}]), added_tokens=[{}]),
        dict(model=dict(type="WordPiece", vocab={}, merges=[])),
    ],
)
def test_a_malformed_tokenizer_json_is_one_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json: no tokenizer\.json with a BPE"):
        ClipBPE(str(tmp_path / "tokenizer.json"), 6)
