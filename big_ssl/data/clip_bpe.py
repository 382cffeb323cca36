"""CLIP's byte-level BPE (Radford et al. 2021, section 2.4), by the tokenizers library."""

import gzip
import html
import importlib.util
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from big_ssl import io
from big_ssl.data.unicode_text import well_formed

# The published vocabulary of 49,408: 256 bytes, as many that end a word, the merges, two marks.
_MERGES = 49_408 - 2 * 256 - 2
_START, _END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_FILE = "bpe_simple_vocab_16e6.txt.gz"
# Of a lower-case text: contractions, words, single digits, and runs of anything else but spaces.
_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipBPE:
    """CLIP's tokenizer over a file of merges or a tokenizer.json, see `read_vocabulary`.

    Called with texts, returns ids: int32[B, L] and mask: bool[B, L], True for tokens; the start token
    first, the end token last, also if the text is truncated to L, then zeros. The ids are those
    of OpenAI's and open_clip's code except for text that ftfy would repair from a wrong encoding, and
    for the marks of start and end in a text, which are ordinary characters here. Raises
    FileNotFoundError, or ValueError if the file has no merges.
    """

    def __init__(self, path: str, length: int):
        vocabulary, merges = read_vocabulary(path)
        self.vocab_size = max(vocabulary.values()) + 1
        self._special = {0, vocabulary[_START], vocabulary[_END]}
        self._tokenizer = _tokenizer(path, vocabulary, merges)
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=0)

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        encoded = self._tokenizer.encode_batch([clean(text) for text in texts])
        ids = np.array([e.ids for e in encoded], np.int32)
        return dict(ids=ids, mask=np.array([e.attention_mask for e in encoded], bool))

    def is_empty(self, ids: np.ndarray) -> bool:
        """Whether ids: int32[L] have only the start and end tokens and padding: an empty text."""
        return self._special.issuperset(ids.tolist())


def read_vocabulary(path: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """({word: id}, merges) of a file.

    path: OpenAI's file of merges, or transformers' merges.txt, whose ids a vocab.json beside it may state;
    or a tokenizer.json of the tokenizers library. Raises FileNotFoundError, or ValueError that names what is
    wrong.
    """
    file = io.as_path(path)
    if file.suffix == ".json":
        return _of_tokenizer_json(file)
    merges, beside = read_merges(path), file.parent / "vocab.json"
    if file.name == "merges.txt" and beside.is_file():
        return _checked(beside, _json(beside)), merges
    characters = byte_characters()
    words = [*characters, *(c + _END_OF_WORD for c in characters), *map("".join, merges), _START, _END]
    return {word: i for i, word in enumerate(dict.fromkeys(words))}, merges


def _of_tokenizer_json(file):
    content = _json(file)
    try:
        model, added = content["model"], content.get("added_tokens") or ()
        if model["type"] != "BPE":
            raise ValueError("its model is no BPE")
        words = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        # Of older versions of the library a text with a space, of newer ones two texts.
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        merges = [(left, right) for left, right in pairs]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: no tokenizer.json with a BPE: {error!r}") from error
    return _checked(file, words), merges


def _json(file):
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def _checked(file, vocabulary):
    """A vocabulary with distinct ids for all bytes and both marks."""
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else [None]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"{file}: no vocabulary: it must have an id for each word")
    characters = byte_characters()
    for word in (*characters, *(c + _END_OF_WORD for c in characters), _START, _END):
        if word not in vocabulary:
            raise ValueError(f"{file} lacks {word}")
    if len(set(numbers)) < len(vocabulary):
        raise ValueError(f"{file} gives one id to two words")
    return vocabulary


def clean(text: str) -> str:
    """Lower case, single spaces, no HTML entities, and what ftfy does to any text: plain quotes,
    standard width, no ligatures, NFC. Not its repair of wrong encodings, which is a search. Lone surrogates
    become U+FFFD."""
    text = well_formed(text)
    if "<" not in text:
        text = re.sub(r"&#?[0-9A-Za-z]{1,24};", lambda entity: html.unescape(entity[0]), text)
    text = unicodedata.normalize("NFC", text.translate(_REPAIRS).translate(_QUOTES))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _repairs():
    """{code point: text} of fullwidth forms, Latin ligatures, and control characters."""
    ligatures = (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
    repairs = {i: unicodedata.normalize("NFKC", chr(i)) for i in (0x3000, *ligatures, *range(0xFF01, 0xFFF0))}
    controls = (
        *range(9),
        0xB,
        *range(0xE, 0x20),
        0x7F,
        *range(0x206A, 0x2070),
        0xFEFF,
        *range(0xFFF9, 0xFFFD),
    )
    return repairs | dict.fromkeys(controls, "")


_REPAIRS = _repairs()
_QUOTES = dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')


def byte_characters() -> list[str]:
    """The character that represents each byte, in the vocabulary's order: Latin-1's printable characters
    represent themselves, code points from 256 on the other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in (*printable, *range(0x100, 0x200 - len(printable)))]


def read_merges(path: str) -> list[tuple[str, str]]:
    """The merges of a file, gzipped or not, at most as many as CLIP has: the published file goes on.

    Its first line is a heading. Raises FileNotFoundError, and ValueError that names a bad line.
    """
    data = io.as_path(path).read_bytes()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"merges {path} can't be read: {error}") from error
    lines = text.split("\n")[1 : _MERGES + 1]
    merges = []
    for i, line in enumerate(lines, start=2):
        left, *others = line.split() or [""]
        if len(others) == 1:
            merges.append((left, others[0]))
        elif line.strip():
            raise ValueError(f"merges {path}: line {i} is {line[:40]!r}, not two words")
    if not merges:
        raise ValueError(f"merges {path}: there is none after the first line")
    return merges


def _tokenizer(path, vocabulary, merges):
    for left, right in merges:
        for word in (left, right):
            if word not in vocabulary:
                raise ValueError(f"merges {path}: {left} {right} needs {word}, which no line before it makes")
    model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix=_END_OF_WORD)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = _words_as_bytes()
    marks = [(mark, vocabulary[mark]) for mark in (_START, _END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{_START} $A {_END}", None, marks)
    return tokenizer


def _words_as_bytes():
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, to_bytes])


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """A file of merges, which make a vocabulary of at most vocab_size words for these texts.

    Raises ValueError if vocab_size leaves room for no merge, or the texts give none.
    """
    count = vocab_size - 2 * 256 - 2
    if count < 1:
        raise ValueError(f"a CLIP vocabulary of {vocab_size} words has no merge; it needs 515 or more")
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
    tokenizer.pre_tokenizer = _words_as_bytes()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        end_of_word_suffix=_END_OF_WORD,
        initial_alphabet=byte_characters(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(clean, texts), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"][:count]
    if not merges:
        raise ValueError("there is no text to learn merges from")
    return "".join(f"{line}\n" for line in ["#version: 0.2", *map(" ".join, merges)]).encode()


def installed_merges() -> str:
    """The published file of merges in an installed package that ships it: open_clip_torch or clip."""
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := pathlib.Path(folder) / _FILE).exists():
                return str(path)
    raise FileNotFoundError(
        f'tokenizer.vocabulary is "clip", but no installed package has {_FILE}: '
        "give its path, or that of a merges.txt, or install open_clip_torch"
    )
