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


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b"])
def test_a_word_may_hold_unicodes_separators_of_lines(separator, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, separator, "b"]) + "\n", encoding="utf-8")
    assert WordPiece(str(tmp_path / "vocab.txt"), 6)(["b"])["ids"][0][1] == len(WORDS) + 1


def tokenizer_json(path, part="normalizer", **changes):
    """The file that transformers 5 writes in place of vocab.txt; changes: of that part of it."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    content = json.loads(library.BertWordPieceTokenizer(vocabulary, lowercase=True).to_str())
    content[part] |= changes
    path.write_text(json.dumps(content))
    return str(path)


def test_a_tokenizer_json_gives_the_same_ids(tokenizer, tmp_path):
    found = WordPiece(tokenizer_json(tmp_path / "tokenizer.json"), 6)
    texts = ["Red hearts", "", "cat unknown face red red red"]
    np.testing.assert_array_equal(found(texts)["ids"], tokenizer(texts)["ids"])
    assert found.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("normalizer", "lowercase", False),
        ("normalizer", "strip_accents", False),
        ("normalizer", "handle_chinese_chars", False),
        ("normalizer", "clean_text", False),
        ("normalizer", "type", "Lowercase"),
        ("normalizer", "new", 1),
        ("pre_tokenizer", "type", "Whitespace"),
        ("model", "type", "BPE"),
        ("model", "continuing_subword_prefix", "@@"),
        ("model", "unk_token", "[MASK]"),
        ("model", "max_input_chars_per_word", 50),
    ],
)
def test_a_tokenizer_json_with_other_settings_is_refused(part, key, value, tmp_path):
    path = tokenizer_json(tmp_path / "tokenizer.json", part, **{key: value})
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json of BERT's: ") as caught:
        WordPiece(path, 6)
    assert f"{part}.{key} is {value!r}; our WordPiece has " in str(caught.value)


def single(*ends):
    first, last = (dict(SpecialToken=dict(id=name, type_id=0)) for name in ends)
    tokens = {name: dict(id=name, ids=[WORDS.index(name)], tokens=[name]) for name in ends}
    content = [first, dict(Sequence=dict(id="A", type_id=0)), last]
    return dict(type="TemplateProcessing", single=content, special_tokens=tokens)


def test_a_template_of_bert_is_read_and_another_refused(tmp_path):
    path = tokenizer_json(tmp_path / "tokenizer.json", "post_processor", **single("[CLS]", "[SEP]"))
    assert WordPiece(path, 6).vocab_size == len(WORDS)
    for changes in (single("[SEP]", "[CLS]"), dict(cls=["[CLS]", 7])):
        path = tokenizer_json(tmp_path / "tokenizer.json", "post_processor", **changes)
        with pytest.raises(ValueError, match=r"post_processor adds .*; our WordPiece adds \[\['\[CLS\]', "):
            WordPiece(path, 6)


@pytest.mark.parametrize("content", ["", "{}", '{"model": 1, "normalizer": 2}'])
def test_a_file_that_is_no_tokenizer_json(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json of BERT's"):
        WordPiece(str(tmp_path / "tokenizer.json"), 6)
