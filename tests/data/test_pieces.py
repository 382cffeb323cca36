"""The files that texts are cut into pieces by."""

import io
import json

import pytest
import sentencepiece
import tokenizers as library

from big_ssl.data import pieces, tokenizers
from big_ssl.data.sentence_piece import GEMMA, XLM, SentencePiece

WORDS = ["▁", "▁a", "▁cat", "▁dog", "a", "c", "t"]


def tokenizer_json(path, special=("<pad>", "<eos>", "<bos>", "<unk>"), vocab=WORDS):
    """A unigram tokenizer.json: special tokens first, then words, each less probable than the one before."""
    scores = [*((name, 0.0) for name in special), *((word, -1.0 - i) for i, word in enumerate(vocab))]
    unknown = special.index("<unk>")
    tokenizer = library.Tokenizer(library.models.Unigram(scores, unk_id=unknown))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(list(special))
    end = next(name for name in special if name in ("<eos>", "</s>"))
    ids = [(end, special.index(end))]
    tokenizer.post_processor = library.processors.TemplateProcessing(f"$A {end}", None, ids)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(path))
    return str(path)


def test_a_tokenizer_json_is_read_for_its_pieces_alone(tmp_path):
    """Neither its truncation, padding or special tokens, nor the names of these in a text."""
    file = pieces.read(tokenizer_json(tmp_path / "tokenizer.json"))
    assert (file.size, file.special) == (11, dict(bos=2, eos=1, pad=0, unk=3))
    assert file.encode("a cat a dog") == [5, 6, 5, 7]
    assert not {0, 1, 2} & set(file.encode("a <eos> <pad> cat"))


def test_styles_over_a_tokenizer_json(tmp_path):
    gemma = SentencePiece(tokenizer_json(tmp_path / "tokenizer.json"), 5, style=GEMMA)
    assert gemma(["A  Cat", "a cat a dog cat"])["ids"].tolist() == [[5, 6, 1, 0, 0], [5, 6, 5, 7, 1]]
    path = tokenizer_json(tmp_path / "tokenizer.json", ("<s>", "<pad>", "</s>", "<unk>"))
    tokens = SentencePiece(path, 5, style=XLM)(["a cat", "a cat a dog", ""])
    assert tokens["ids"].tolist() == [[0, 5, 6, 2, 1], [0, 5, 6, 5, 2], [0, 2, 1, 1, 1]]
    assert tokens["mask"].sum(1).tolist() == [4, 5, 2]


def test_case_is_kept_for_xlm(tmp_path):
    path = tokenizer_json(tmp_path / "tokenizer.json", ("<s>", "<pad>", "</s>", "<unk>"), [*WORDS, "▁Cat"])
    assert SentencePiece(path, 4, style=XLM)(["Cat"])["ids"].tolist() == [[0, 11, 2, 1]]


def test_fairseqs_ids_of_a_model_file(tmp_path):
    """<unk>, <s> and </s>, 0 to 2 in the file, are 3, 0 and 2; all others are shifted by one."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat", "a dog"] * 50),
        model_writer=written,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "sentencepiece.bpe.model").write_bytes(written.getvalue())
    path = str(tmp_path / "sentencepiece.bpe.model")
    plain, shifted = pieces.ModelFile(path), pieces.read(path, fairseq=True)
    assert shifted.size == plain.size + 2
    assert shifted.special == dict(bos=0, pad=1, eos=2, unk=3)
    assert shifted.encode("a cat") == [i + 1 for i in plain.encode("a cat")]
    assert 3 in shifted.encode("a 漢 cat")
    assert 0 in plain.encode("a 漢 cat")


@pytest.mark.parametrize(
    "content", ["", "no JSON", "{}", json.dumps(dict(model=dict(type="Unigram", vocab=1)))]
)
def test_a_file_that_is_no_tokenizer_json(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json: .+$") as caught:
        pieces.read(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_json_without_a_special_token_is_named(tmp_path):
    path = tokenizer_json(tmp_path / "tokenizer.json", ("<s>", "</s>", "<unk>"))
    with pytest.raises(ValueError, match=r"the vocabulary .*tokenizer\.json has no pad piece"):
        tokenizers.build(dict(kind="sentencepiece_xlm", vocabulary=path, size=10, length=5))
