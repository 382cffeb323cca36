"""SentencePiece model files (Kudo and Richardson 2018, arXiv 1808.06226), as SigLIP reads them, and BERT."""

import io
import itertools
import string
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece

from big_ssl.data.unicode_text import well_formed
from big_ssl.io import as_path

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
    mask excludes the padding.
    """

    clean: Callable[[str], str]
    begins: bool = False
    pads_with_end: bool = False
    masks: bool = False


# SigLIP's text encoder sees all positions, also padding, and pools the last. Its texts end, and are padded,
# with </s> (big_vision: eos="sticky", pad_value=1); SigLIP 2's are Gemma's, with punctuation and <pad>.
SIGLIP = Style(canonical, pads_with_end=True)
GEMMA = Style(lower)
# Pooled at its first token; for ALIGN.
BERT = Style(lower, begins=True, masks=True)


class SentencePiece:
    """A tokenizer over a SentencePiece model file.

    Called with texts, returns ids: int32[B, L] and mask: bool[B, L]: the pieces, the end of text, also if
    they are truncated to L, then padding; see Style. The names of special pieces in a text are ordinary
    characters. Raises FileNotFoundError, or ValueError if the file is no model or lacks a piece that the
    style needs.
    """

    def __init__(self, path: str, length: int, *, style: Style):
        self._pieces, self._style, self._length = _load(path), style, length
        self._first = [self._special_id("bos", path)] if style.begins else []
        self._end = self._special_id("eos", path)
        self._pad = self._end if style.pads_with_end else self._special_id("pad", path)
        self._special = {*self._first, self._end, self._pad}
        # T5's sentinels at the end of some files have no place in SigLIP's tables.
        size = self._pieces.get_piece_size()
        while size and "<extra_id_" in self._pieces.id_to_piece(size - 1):
            size -= 1
        self.vocab_size = size

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        ids = np.full((len(texts), self._length), self._pad, np.int32)
        mask = np.full(ids.shape, not self._style.masks)
        for row, used, text in zip(ids, mask, texts, strict=True):
            pieces = [*self._first, *self._cut(self._style.clean(text))][: self._length - 1]
            row[: len(pieces) + 1] = [*pieces, self._end]
            used[: len(pieces) + 1] = True
        return dict(ids=ids, mask=mask)

    def is_empty(self, ids: np.ndarray) -> bool:
        """Whether ids: int32[L] have only special pieces: an empty text."""
        return self._special.issuperset(ids.tolist())

    def _special_id(self, name, path):
        special_id = getattr(self._pieces, f"{name}_id")()
        if special_id < 0:
            raise ValueError(f"SentencePiece model {path} has no {name} piece")
        return special_id

    def _cut(self, text):
        unknown = self._pieces.unk_id()
        return (i if i < self.vocab_size else unknown for i in self._pieces.encode(text))


def _load(path):
    data = as_path(path).read_bytes()
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=data) if data else None
    except RuntimeError:  # its message names a line of its own code
        pieces = None
    if pieces is None:
        raise ValueError(f"{path} is no SentencePiece model")
    return pieces


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
