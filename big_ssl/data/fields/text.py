"""Texts: one of a record's captions, drawn at random, and the answers to its question."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from big_ssl.data import records
from big_ssl.data.fields.base import Field
from big_ssl.data.records import BadValue


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """ids: int32[L] and mask: bool[L], True for tokens, False for padding: one of a record's captions.

    captions: {key: weight}; a key is drawn by its weight among those that the record has, then one of its
    texts. For the key "tags" it is a random subset of the texts in random order, joined to one text.
    """

    captions: Mapping[str, float]

    counter: ClassVar[str] = "replaced_texts"
    needs_tokenizer: ClassVar[bool] = True

    def __post_init__(self):
        if not self.captions or not any(self.captions.values()):
            raise ValueError("captions: one of them must have a weight above 0")

    def zeros(self):
        return _empty(self.context.length)

    def load(self, record, draws):
        return _tokens(self.context.tokenizer, draw_caption(record, self.captions, draws.rng))

    def keys(self):
        return {f"captions.{key}": key for key, weight in self.captions.items() if weight}

    def missing_keys(self, present):
        """All keys, only if none of them is present: one suffices."""
        missing = super().missing_keys(present)
        return {"captions": ", ".join(missing.values())} if len(missing) == len(self.keys()) else {}

    def encoder_inputs(self, value, key, train):
        del key, train
        return dict(value)


@dataclasses.dataclass(frozen=True)
class Answers(Field):
    """The first `count` answers of a record: ids: int32[count, L], mask: bool[count, L], and valid:
    bool[count], False in rows without an answer.

    key: where a record has one text or a list of them.
    """

    key: str
    count: int = 10

    counter: ClassVar[str] = "replaced_answers"
    needs_tokenizer: ClassVar[bool] = True

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count is {self.count}; it must be at least 1")

    def zeros(self):
        empty = _empty(self.context.length)
        tokens = {name: np.repeat(value[None], self.count, 0) for name, value in empty.items()}
        return tokens | dict(valid=np.zeros(self.count, bool))

    def load(self, record, draws):
        del draws
        answers = records.values(record, self.key)[: self.count]
        if not answers:
            raise BadValue(f"no answer under {self.key!r}")
        value = self.zeros()
        for place, answer in enumerate(answers):
            for name, row in _tokens(self.context.tokenizer, _checked(answer)).items():
                value[name][place] = row
            value["valid"][place] = True
        return value


def draw_caption(record: records.Record, captions: Mapping[str, float], rng: np.random.Generator) -> str:
    """One text of a record; see Text. Raises BadValue if it has none, or the drawn one is not a string."""
    candidates = {key: records.values(record, key) for key, weight in captions.items() if weight}
    keys = [key for key, texts in candidates.items() if texts]
    if not keys:
        raise BadValue("no caption")
    weights = np.array([captions[key] for key in keys])
    key = keys[rng.choice(len(keys), p=weights / weights.sum())]
    texts = candidates[key]
    count = rng.integers(1, len(texts) + 1) if key == "tags" else 1
    drawn = [_checked(texts[i]) for i in rng.permutation(len(texts))[:count]]
    return " ".join(drawn)


def _checked(text):
    if not isinstance(text, str):
        raise BadValue(f"a caption of type {type(text).__name__}")
    # Half an emoji, as a caption cut short in JSON leaves it, is no Unicode and can't be tokenised.
    return text.encode(errors="ignore").decode()


def _tokens(tokenizer, text):
    tokens = {name: value[0] for name, value in tokenizer([text]).items()}
    if tokenizer.is_empty(tokens["ids"]):
        raise BadValue("nothing left after tokenisation")
    return tokens


def _empty(length):
    # The mask is True everywhere: attention to no token at all would be NaN.
    return dict(ids=np.zeros(length, np.int32), mask=np.ones(length, bool))
