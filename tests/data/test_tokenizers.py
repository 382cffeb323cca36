"""WordPiece: special tokens, padding, truncation, and texts that say nothing."""

import json

import numpy as np
import pytest
import tokenizers as library

from big_ssl.data.tokenizers import SPECIAL, WordPiece, train_wordpiece, vocabulary_path

WORDS = [*SPECIAL, "red", "heart", "face", "##s", "cat"]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocabulary.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return WordPiece(str(tmp_path / "vocabulary.txt"), 6)


HALF, REPLACED = "red \ud83d heart", "red \ufffd heart"


def _words(ids):
    return [WORDS[i] for i in ids]


def test_cls_first_sep_last_padding_masked(tokenizer):
    tokens = tokenizer(["red hearts", "Cat"])
    assert tokens["ids"].dtype == np.int32
    assert tokens["mask"].dtype == bool
    assert _words(tokens["ids"][0]) == ["[CLS]", "red", "heart", "##s", "[SEP]", "[PAD]"]
    assert _words(tokens["ids"][1]) == ["[CLS]", "cat", "[SEP]", *["[PAD]"] * 3]
    assert tokens["mask"].sum(1).tolist() == [5, 3]


def test_truncation_keeps_sep(tokenizer):
    tokens = tokenizer(["red red red red red red red red"])
    assert _words(tokens["ids"][0]) == ["[CLS]", *["red"] * 4, "[SEP]"]
    assert tokens["mask"].all()


def test_half_an_emoji_counts_as_the_replacement_character(tokenizer):
    np.testing.assert_array_equal(tokenizer([HALF])["ids"], tokenizer([REPLACED])["ids"])
    assert train_wordpiece([HALF] * 5, 60)[: len(SPECIAL)] == list(SPECIAL)


def test_the_length_does_not_depend_on_the_batch(tokenizer):
    short, both = tokenizer(["cat"]), tokenizer(["cat", "red red red red red"])
    np.testing.assert_array_equal(short["ids"][0], both["ids"][0])


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00\x01", "[PAD]", "[CLS] [SEP]"])
def test_a_text_that_says_nothing(text, tokenizer):
    assert tokenizer.is_empty(tokenizer([text])["ids"][0])


@pytest.mark.parametrize("text", ["cat", "unknown", "猫", "!"])
def test_a_text_that_says_something(text, tokenizer):
    assert not tokenizer.is_empty(tokenizer([text])["ids"][0])


@pytest.mark.parametrize("token", SPECIAL)
def test_a_missing_special_token_is_named(token, tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(word for word in WORDS if word != token))
    with pytest.raises(
        ValueError, match=rf"vocabulary .*vocabulary.txt lacks the special token \[{token[1:-1]}\]"
    ):
        WordPiece(str(path), 6)


def test_a_vocabulary_that_is_no_text_is_named(tmp_path):
    (tmp_path / "vocabulary.txt").write_bytes(b"[PAD]\n\xff")
    with pytest.raises(ValueError, match=r"vocabulary .*vocabulary\.txt is no UTF-8 text"):
        WordPiece(str(tmp_path / "vocabulary.txt"), 6)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        WordPiece(str(tmp_path / "none.txt"), 6)


def test_the_embedded_vocabulary():
    tokenizer = WordPiece(vocabulary_path("emoji"), 16)
    assert tokenizer.vocab_size == 4096
    tokens = tokenizer(["grinning face with big eyes"])
    unknown = tokenizer(["猫"])["ids"][0][1]
    assert unknown not in tokens["ids"]
    assert tokens["mask"].sum() < 10


def test_a_trained_vocabulary_can_be_used(tmp_path):
    words = train_wordpiece(["a red heart", "a blue heart", "two hearts"] * 5, 60)
    assert words[: len(SPECIAL)] == list(SPECIAL)
    assert len(words) == len(set(words)) <= 60
    (tmp_path / "words.txt").write_text("\n".join(words))
    tokenizer = WordPiece(str(tmp_path / "words.txt"), 8)
    assert tokenizer(["red heart"])["mask"].sum() <= 8


def tokenizer_json(path, **normalizer):
    """The file that transformers 5 writes in place of vocab.txt; normalizer: changes of its settings."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    content = json.loads(library.BertWordPieceTokenizer(vocabulary, lowercase=True).to_str())
    content["normalizer"] |= normalizer
    path.write_text(json.dumps(content))
    return str(path)


def test_a_tokenizer_json_gives_the_same_ids(tokenizer, tmp_path):
    found = WordPiece(tokenizer_json(tmp_path / "tokenizer.json"), 6)
    texts = ["Red hearts", "", "cat unknown face red red red"]
    np.testing.assert_array_equal(found(texts)["ids"], tokenizer(texts)["ids"])
    assert found.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("normalizer", [dict(lowercase=False), dict(strip_accents=False)])
def test_a_cased_tokenizer_json_is_refused(normalizer, tmp_path):
    path = tokenizer_json(tmp_path / "tokenizer.json", **normalizer)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json of BERT's: .*it is cased"):
        WordPiece(path, 6)


@pytest.mark.parametrize("content", ["", "{}", '{"model": 1, "normalizer": 2}'])
def test_a_file_that_is_no_tokenizer_json(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json of BERT's"):
        WordPiece(str(tmp_path / "tokenizer.json"), 6)
