"""Tokenizers of SentencePiece's kind (Kudo and Richardson 2018, arXiv 1808.06226): how families of encoders
clean texts and place special pieces, over the pieces of any file that data.pieces reads."""

import io
import itertools
import string
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece

from big_ssl.data import pieces as piece_files
from big_ssl.data.unicode_text import well_formed

# Training samples at most this many texts, with a new sample each time: it holds them in memory.
_MOST_TEXTS = 10_000_000
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def lower(text: str) -> str:
    """Lower case, single spaces; lone surrogates become U+FFFD."""
    return " ".join(well_formed(text).lower().split())


def canonical(text: str) -> str:
    """Without ASCII's punctuation, underscores as spaces, lower case, single spaces: big_vision's prompts."""
    return lower(text.translate(_NO_PUNCTUATION))


class Style(NamedTuple):
    """How a family of encoders cleans texts and adds special tokens.

    clean: text -> text, before it is cut into pieces; begins: whether the token <s> comes first;
    pads_with_end: whether padding is the end-of-text token, not the model's padding; masks: whether the
    mask excludes the padding; fairseq: whether ids are fairseq's, see data.pieces.
    """

    clean: Callable[[str], str]
    begins: bool = False
    pads_with_end: bool = False
    masks: bool = False
    fairseq: bool = False


# SigLIP's text encoder sees all positions, also padding, and pools the last. Its texts end, and are padded,
# with </s> (big_vision: eos="sticky", pad_value=1); SigLIP 2's are Gemma's, with punctuation and <pad>.
SIGLIP = Style(canonical, pads_with_end=True)
GEMMA = Style(lower)
# Pooled at its first token; for ALIGN.
BERT = Style(lower, begins=True, masks=True)
# XLM-V's vocabulary of MetaCLIP 2 (arXiv 2507.22062), which tells upper from lower case.
XLM = Style(well_formed, begins=True, masks=True, fairseq=True)


class SentencePiece:
    """A tokenizer over the pieces of a file.

    Called with texts, returns ids: int32[B, L] and mask: bool[B, L]: the pieces, the end of text, also if
    they are truncated to L, then padding; see Style. The names of special pieces in a text are ordinary
    characters, or unknown. Raises FileNotFoundError, or ValueError if data.pieces can't read the file, or it
    lacks a piece that the style needs.
    """

    def __init__(self, path: str, length: int, *, style: Style):
        self._pieces = piece_files.read(path, style.fairseq)
        self._style, self._length, self.vocab_size = style, length, self._pieces.size
        self._first = [self._special_id("bos", path)] if style.begins else []
        self._end = self._special_id("eos", path)
        self._pad = self._end if style.pads_with_end else self._special_id("pad", path)
        self._special = {*self._first, self._end, self._pad}

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        ids = np.full((len(texts), self._length), self._pad, np.int32)
        mask = np.full(ids.shape, not self._style.masks)
        for row, used, text in zip(ids, mask, texts, strict=True):
            pieces = [*self._first, *self._pieces.encode(self._style.clean(text))][: self._length - 1]
            row[: len(pieces) + 1] = [*pieces, self._end]
            used[: len(pieces) + 1] = True
        return dict(ids=ids, mask=mask)

    def is_empty(self, ids: np.ndarray) -> bool:
        """Whether ids: int32[L] have only special pieces: an empty text."""
        return self._special.issuperset(ids.tolist())

    def _special_id(self, name, path):
        if name not in self._pieces.special:
            raise ValueError(f"the vocabulary {path} has no {name} piece")
        return self._pieces.special[name]


def train(texts: Iterable[str], vocab_size: int, *, style: Style) -> bytes:
    """A SentencePiece model file, unigram, of at most vocab_size pieces for these texts.

    The special pieces have the ids of SigLIP's file: <pad> 0, </s> 1, <unk> 2; and <s> is 3.
    Raises ValueError if there is no text, or vocab_size is too small for the texts' characters.
    """
    model, cleaned = io.BytesIO(), filter(None, map(style.clean, texts))
    first = next(cleaned, None)
    if first is None:
        raise ValueError("there is no text to train a SentencePiece model on")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], cleaned),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            input_sentence_size=_MOST_TEXTS,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or error
        raise ValueError(f"no SentencePiece model of {vocab_size} pieces: {reason}") from error
    return model.getvalue()
