"""The pieces that a tokenizer's file cuts texts into: SentencePiece models, and tokenizer.json files."""

from collections.abc import Mapping
from typing import Protocol

import sentencepiece
import tokenizers

from big_ssl.io import as_path


class Pieces(Protocol):
    """The vocabulary of a file.

    size: the number of ids. special: {"bos", "eos", "pad", "unk": its id}, without those that the file lacks.
    """

    @property
    def size(self) -> int: ...

    @property
    def special(self) -> Mapping[str, int]: ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text; names of special pieces in it are ordinary characters, or unknown."""
        ...


class ModelFile:
    """A SentencePiece model file; see Pieces. Raises FileNotFoundError, or ValueError if it is none."""

    def __init__(self, path: str):
        data = as_path(path).read_bytes()
        try:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=data) if data else None
        except RuntimeError:  # its message names a line of its own code
            pieces = None
        if pieces is None:
            raise ValueError(f"{path} is no SentencePiece model")
        self._pieces = pieces
        ids = {name: getattr(pieces, f"{name}_id")() for name in ("bos", "eos", "pad", "unk")}
        self.special = {name: i for name, i in ids.items() if i >= 0}
        # T5's sentinels at the end of some files have no place in SigLIP's tables.
        self.size = pieces.get_piece_size()
        while self.size and "<extra_id_" in pieces.id_to_piece(self.size - 1):
            self.size -= 1

    def encode(self, text):
        """See Pieces."""
        unknown = self.special["unk"]
        return [i if i < self.size else unknown for i in self._pieces.encode(text)]


class FairseqModelFile:
    """A SentencePiece model file with the ids of fairseq, which XLM-R and XLM-V have; see Pieces.

    <s>, <pad>, </s> and <unk> are 0 to 3; each other piece's id is one more than in the file, whose first
    three are <unk>, <s> and </s>; <mask> is the last. Raises as ModelFile.
    """

    special: Mapping[str, int] = dict(bos=0, pad=1, eos=2, unk=3)

    def __init__(self, path: str):
        self._file = ModelFile(path)
        self.size = self._file.size + 2

    def encode(self, text):
        """See Pieces."""
        unknown = self._file.special["unk"]
        return [self.special["unk"] if i == unknown else i + 1 for i in self._file.encode(text)]


# What files call the special pieces.
_NAMES = dict(bos=("<bos>", "<s>"), eos=("<eos>", "</s>"), pad=("<pad>",), unk=("<unk>",))


class TokenizerJson:
    """A tokenizer.json of the tokenizers library, its normaliser included; see Pieces.

    Its post-processor, padding and truncation are not used. Raises FileNotFoundError, or ValueError if it is
    no such file.
    """

    def __init__(self, path: str):
        data = as_path(path).read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises no narrower class
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(f"{path} is no tokenizer.json: {reason}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self.size = self._tokenizer.get_vocab_size()
        ids = {name: map(self._tokenizer.token_to_id, names) for name, names in _NAMES.items()}
        known = {name: [i for i in candidates if i is not None] for name, candidates in ids.items()}
        self.special = {name: candidates[0] for name, candidates in known.items() if candidates}
        if "unk" not in self.special:
            raise ValueError(f"the vocabulary {path} has no unk piece")
        self._marks = {i for name, i in self.special.items() if name != "unk"}

    def encode(self, text):
        """See Pieces."""
        # A unigram model matches the names of its special pieces, although they are not split off first.
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.special["unk"] if i in self._marks else i for i in ids]


def read(path: str, fairseq: bool = False) -> Pieces:
    """The pieces of a file.

    Args:
      path: a tokenizer.json, or a SentencePiece model of any other name.
      fairseq: whether a SentencePiece model's ids are FairseqModelFile's.

    Raises:
      FileNotFoundError, or ValueError for a file that is neither.
    """
    if as_path(path).suffix == ".json":
        return TokenizerJson(path)
    return FairseqModelFile(path) if fairseq else ModelFile(path)
