"""SentencePiece: what each style does around the pieces, a model's own special ids, and bad files."""

import io
import pathlib

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from big_ssl.data import tokenizers
from big_ssl.data.sentence_piece import BERT, GEMMA, SIGLIP, SentencePiece, canonical, train

TEXTS = ["a photo of a cat", "two dogs on the grass", "a red heart", "the quick brown fox, it jumps!"] * 20
PAD, END, UNKNOWN, BEGINNING = range(4)
LENGTH = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("pieces") / "spiece.model"
    file.write_bytes(train(TEXTS, 60, style=BERT))
    return str(file)


@pytest.fixture(scope="module")
def pieces(path):
    return sentencepiece.SentencePieceProcessor(model_file=path)


def model(path, **changes):
    """Writes a model file of the trainer's, with other options than ours."""
    written = io.BytesIO()
    options = dict(vocab_size=60, hard_vocab_limit=False, minloglevel=2) | changes
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=written, **options)
    path.write_bytes(written.getvalue())
    return str(path)


def test_siglip_ends_and_pads_with_the_end_and_sees_it_all(path, pieces):
    tokens = SentencePiece(path, LENGTH, style=SIGLIP)(["A  Cat!!", ""])
    assert (tokens["ids"].dtype, tokens["mask"].dtype) == (np.int32, bool)
    cat = pieces.encode("a cat")
    assert 1 < len(cat) < LENGTH
    assert tokens["ids"].tolist() == [cat + [END] * (LENGTH - len(cat)), [END] * LENGTH]
    assert tokens["mask"].shape == (2, LENGTH)
    assert tokens["mask"].all()


@pytest.mark.parametrize("style", [SIGLIP, GEMMA, BERT])
def test_half_an_emoji_counts_as_the_replacement_character(style, path):
    tokenizer = SentencePiece(path, LENGTH, style=style)
    half, replaced = tokenizer(["a \ud83d cat", "a \ufffd cat"])["ids"]
    np.testing.assert_array_equal(half, replaced)
    assert tokenizer(["\ud83d"])["ids"].shape == (1, LENGTH)
    assert train([*TEXTS, "\ud83d"], 60, style=style) == train([*TEXTS, "\ufffd"], 60, style=style)


def test_gemma_keeps_punctuation_and_pads_with_the_padding(path, pieces):
    tokens = SentencePiece(path, LENGTH, style=GEMMA)(["Fox, it"])
    fox = pieces.encode("fox, it")
    assert fox != pieces.encode("fox it")
    assert tokens["ids"][0].tolist() == [*fox, END] + [PAD] * (LENGTH - len(fox) - 1)
    assert tokens["mask"].all()


def test_bert_begins_and_masks_its_padding(path, pieces):
    tokens = SentencePiece(path, LENGTH, style=BERT)(["A cat", ""])
    cat = pieces.encode("a cat")
    rest = LENGTH - len(cat) - 2
    assert tokens["ids"][0].tolist() == [BEGINNING, *cat, END] + [PAD] * rest
    assert tokens["mask"][0].tolist() == [True] * (len(cat) + 2) + [False] * rest
    assert tokens["mask"][1].sum() == 2


@pytest.mark.parametrize("style", [SIGLIP, GEMMA, BERT], ids=["siglip", "gemma", "bert"])
def test_a_text_that_is_cut_keeps_its_end(style, path, pieces):
    ids = SentencePiece(path, LENGTH, style=style)([" ".join(TEXTS)])["ids"][0].tolist()
    first = [BEGINNING] if style.begins else []
    kept = pieces.encode(style.clean(" ".join(TEXTS)))[: LENGTH - 1 - len(first)]
    assert ids == [*first, *kept, END]


def test_the_length_does_not_depend_on_the_batch(path):
    tokenizer = SentencePiece(path, LENGTH, style=BERT)
    alone, both = tokenizer(["cat"]), tokenizer(["cat", "two dogs on the grass"])
    np.testing.assert_array_equal(alone["ids"][0], both["ids"][0])
    np.testing.assert_array_equal(alone["mask"][0], both["mask"][0])


def test_canonical():
    assert canonical(" A photo_of\n a CAT, (it's)! ") == "a photo of a cat its"
    assert canonical("“Ärger” — 猫。") == "“ärger” — 猫。"  # ASCII's punctuation only


def test_texts_that_say_nothing(path):
    tokenizer = SentencePiece(path, LENGTH, style=SIGLIP)
    for text in ("", " \n", "...!?"):
        assert tokenizer.is_empty(tokenizer([text])["ids"][0])
    for text in ("cat", "猫", "x"):
        assert not tokenizer.is_empty(tokenizer([text])["ids"][0])


@pytest.mark.parametrize("style", [SIGLIP, GEMMA, BERT], ids=["siglip", "gemma", "bert"])
def test_a_special_piece_in_a_text_is_mere_letters(style, path):
    tokenizer = SentencePiece(path, 40, style=style)
    ids = tokenizer(["a </s> cat <pad> <s>"])["ids"][0].tolist()
    end = ids.index(END)
    assert end > 8
    assert set(ids[end:]) <= {END, PAD}
    assert ids.count(BEGINNING) == int(style.begins)


def test_sentinels_are_not_counted_and_never_given(tmp_path):
    sentinels = ["<extra_id_1>", "<extra_id_0>"]
    path = model(
        tmp_path / "m.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=sentinels
    )
    # The trainer puts them first, mT5's file has them last.
    proto = sentencepiece_model_pb2.ModelProto.FromString((tmp_path / "m.model").read_bytes())
    extra = [piece for piece in proto.pieces if piece.piece in sentinels]
    kept = [piece for piece in proto.pieces if piece.piece not in sentinels]
    del proto.pieces[:]
    proto.pieces.extend([*kept, *extra])
    (tmp_path / "m.model").write_bytes(proto.SerializeToString())
    tokenizer = SentencePiece(path, LENGTH, style=GEMMA)
    assert tokenizer.vocab_size == len(kept)
    assert tokenizer(["<extra_id_0>"])["ids"].max() < len(kept)
    assert UNKNOWN in tokenizer(["<extra_id_0>"])["ids"]


@pytest.mark.parametrize(
    ("ids", "style", "lacking"),
    [
        (dict(eos_id=-1), SIGLIP, "eos"),
        (dict(pad_id=-1), GEMMA, "pad"),
        (dict(pad_id=3, bos_id=-1), BERT, "bos"),
    ],
)
def test_a_special_piece_that_is_missing_is_named(ids, style, lacking, tmp_path):
    path = model(tmp_path / "m.model", **ids)
    with pytest.raises(ValueError, match=rf"the vocabulary {path} has no {lacking} piece"):
        SentencePiece(path, LENGTH, style=style)


@pytest.mark.parametrize("content", [b"", b"no model", "cut"], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_model(content, path, tmp_path):
    whole = pathlib.Path(path).read_bytes()
    (tmp_path / "bad.model").write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"bad\.model is no SentencePiece model$"):
        SentencePiece(str(tmp_path / "bad.model"), LENGTH, style=SIGLIP)
    with pytest.raises(FileNotFoundError, match=r"none\.model"):
        SentencePiece(str(tmp_path / "none.model"), LENGTH, style=SIGLIP)


def test_more_texts_than_are_held_are_sampled(monkeypatch):
    monkeypatch.setattr("big_ssl.data.sentence_piece._MOST_TEXTS", 101)
    many = [f"{text} {chr(0x4E00 + i)}" for i, text in enumerate(TEXTS * 5)]
    sampled = sentencepiece.SentencePieceProcessor(model_proto=train(many, 200, style=SIGLIP))
    assert sampled.get_piece_size() < 60 + 101 < len(many)


def test_training_says_what_it_lacks():
    with pytest.raises(ValueError, match="no text to train a SentencePiece model on"):
        train(["...", ""], 60, style=SIGLIP)
    with pytest.raises(ValueError, match="no SentencePiece model of 9 pieces: Vocabulary size is smaller"):
        train(TEXTS, 9, style=SIGLIP)


@pytest.mark.parametrize(
    ("kind", "style"),
    [("sentencepiece", SIGLIP), ("sentencepiece_gemma", GEMMA), ("sentencepiece_bert", BERT)],
)
def test_the_config_chooses_the_style(kind, style, path, pieces):
    options = dict(kind=kind, vocabulary=path, size=pieces.get_piece_size(), length=LENGTH)
    built, expected = tokenizers.build(options), SentencePiece(path, LENGTH, style=style)
    for key, value in expected(TEXTS).items():
        np.testing.assert_array_equal(built(TEXTS)[key], value)
    with pytest.raises(ValueError, match=r"tokenizer\.size is 7; the vocabulary .* has \d+ words"):
        tokenizers.build(options | dict(size=7))
