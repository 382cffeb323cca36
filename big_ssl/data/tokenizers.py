"""Tokenizers by name: WordPiece (by the tokenizers library), CLIP's BPE, SentencePiece."""

import functools
import importlib.resources
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import tokenizers

from big_ssl import io
from big_ssl.data import clip_bpe, sentence_piece
from big_ssl.data.sentence_piece import SentencePiece
from big_ssl.data.unicode_text import well_formed

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The values that a tokenizer.json may have, so that it gives our WordPiece's ids; ours first.
_PARTS = dict(
    model=dict(
        type=("WordPiece",),
        unk_token=("[UNK]",),
        continuing_subword_prefix=("##",),
        max_input_chars_per_word=(100,),
    ),
    normalizer=dict(
        type=("BertNormalizer",),
        lowercase=(True,),
        strip_accents=(True, None),
        clean_text=(True,),
        handle_chinese_chars=(True,),
    ),
    pre_tokenizer=dict(type=("BertPreTokenizer",)),
)


class Tokenizer(Protocol):
    """Called with texts, returns ids: int32[B, L] and mask: bool[B, L]; the same for training and inference.

    A lone surrogate in a text counts as U+FFFD, see unicode_text.well_formed.
    """

    vocab_size: int

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]: ...

    def is_empty(self, ids: np.ndarray) -> bool:
        """Whether ids: int32[L] have only special tokens."""
        ...


class WordPiece:
    """BERT's uncased WordPiece over a vocabulary file, one token a line, or a tokenizer.json of transformers.

    Called with texts, returns ids: int32[B, L] and mask: bool[B, L], True for tokens, False for padding;
    [CLS] first, [SEP] last, truncated to L. Raises FileNotFoundError, or ValueError if the
    file is no text, lacks a special token, or is for a cased tokenizer.
    """

    def __init__(self, path: str, length: int):
        words = read_words(path)
        missing = [token for token in SPECIAL if token not in words]
        if missing:
            raise ValueError(f"vocabulary {path} lacks the special token {missing[0]}")
        vocabulary = {word: i for i, word in enumerate(words)}
        self._tokenizer = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=vocabulary["[PAD]"])
        self.vocab_size = len(words)
        self._special = {vocabulary[token] for token in SPECIAL if token != "[UNK]"}

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        encoded = self._tokenizer.encode_batch(list(map(well_formed, texts)))
        ids = np.array([e.ids for e in encoded], np.int32)
        return dict(ids=ids, mask=np.array([e.attention_mask for e in encoded], bool))

    def is_empty(self, ids: np.ndarray) -> bool:
        """Whether ids: int32[L] have only special tokens: an empty text."""
        return self._special.issuperset(ids.tolist())


def read_words(path: str) -> list[str]:
    """The words of a vocabulary, in the order of their ids; see WordPiece for the file and the errors."""
    file = io.as_path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"vocabulary {path} is no UTF-8 text: {error}") from error
    if file.suffix != ".json":
        return text.removesuffix("\n").split("\n")  # other separators of lines may be words
    try:
        content = json.loads(text)
        for part, required in _PARTS.items():
            _check_part(part, dict(content[part]), required)
        vocabulary = content["model"]["vocab"]
        ids = {**vocabulary, **{token["content"]: token["id"] for token in content["added_tokens"]}}
        words = sorted(ids, key=ids.__getitem__)
        if [ids[word] for word in words] != list(range(len(words))):
            raise ValueError("its model is no WordPiece with one word for each id")
        _check_ends(content["post_processor"], ids)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"vocabulary {path} is no tokenizer.json of BERT's: {error!r}") from error
    return words


def _check_part(part, stated, required):
    """Refuses a part of a tokenizer.json with other keys or values than our WordPiece's."""
    for key in required.keys() | (stated.keys() - {"vocab"}):
        allowed = required.get(key, (None, False))  # what is switched off has no effect
        if stated.get(key) not in allowed:
            raise ValueError(f"{part}.{key} is {stated.get(key)!r}; our WordPiece has {allowed[0]!r}")


def _check_ends(processor, ids):
    """Refuses a post-processor that does not put [CLS] first and [SEP] last, with the vocabulary's ids."""
    required = [["[CLS]", ids["[CLS]"]], ["[SEP]", ids["[SEP]"]]]
    if processor["type"] == "BertProcessing":
        ends = [processor["cls"], processor["sep"]]
    else:
        first, text, last = processor["single"]
        tokens = processor["special_tokens"]
        names = [end["SpecialToken"]["id"] for end in (first, last)]
        ends = [[name, *tokens[name]["ids"]] for name in names] if "Sequence" in text else []
    if ends != required:
        raise ValueError(f"post_processor adds {ends}; our WordPiece adds {required}")


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> list[str]:
    """A WordPiece vocabulary of at most vocab_size words for these texts, special tokens first."""
    trainer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(
        map(well_formed, texts),
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL),
    )
    vocabulary = trainer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def vocabulary_path(name: str) -> str:
    """The file of config.tokenizer.vocabulary: "emoji" is the embedded one, "clip" that of an installed
    package; else a path."""
    if name == "emoji":
        return str(importlib.resources.files("big_ssl.data") / "embedded" / "emoji_wordpiece.txt")
    return clip_bpe.installed_merges() if name == "clip" else name


TOKENIZERS: dict[str, Callable[[str, int], Tokenizer]] = {
    "wordpiece": WordPiece,
    "clip_bpe": clip_bpe.ClipBPE,
    "sentencepiece": functools.partial(SentencePiece, style=sentence_piece.SIGLIP),
    "sentencepiece_gemma": functools.partial(SentencePiece, style=sentence_piece.GEMMA),
    "sentencepiece_xlm": functools.partial(SentencePiece, style=sentence_piece.XLM),
    "sentencepiece_bert": functools.partial(SentencePiece, style=sentence_piece.BERT),
}


def build(options: Mapping) -> Tokenizer:
    """The tokenizer of config.tokenizer. Raises ValueError if the vocabulary does not have the size
    that the config states, or for an unknown kind."""
    if options["kind"] not in TOKENIZERS:
        raise ValueError(f"tokenizer.kind is {options['kind']!r}; there are {', '.join(TOKENIZERS)}")
    tokens = TOKENIZERS[options["kind"]](vocabulary_path(options["vocabulary"]), options["length"])
    if tokens.vocab_size != options["size"]:
        raise ValueError(
            f"tokenizer.size is {options['size']}; the vocabulary {options['vocabulary']!r} has "
            f"{tokens.vocab_size} words"
        )
    return tokens
