"""Texts: one of a record's captions, drawn at random, and the answers to its question."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from big_ssl.data import label_sets, prompt_templates, records, sources
from big_ssl.data.fields.base import Description, Field
from big_ssl.data.label_sets import LabelSet
from big_ssl.data.records import BadValue, Labels

PROMPT_CLASSES = ("all", "short")


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """ids: int32[L] and mask: bool[L], True for tokens, False for padding: one of a record's captions, or the
    name of its class.

    Args:
      captions: {key: weight}; a key is drawn by its weight among those that the record has, then one of its
        texts. For the key "tags" it is a random subset of the texts in random order, joined to one text.
      class_key: in place of captions, where a record has its class, by name or by number; the source must
        know the names of all classes. A name that is a plain text can be a caption.
      label_set: the names of the source's classes, as in label_sets.build: "" for its own, "imagenet" or
        another of LABEL_SETS, a text file, or a list. A name is cleaned (prompt_templates.cleaned) when it
        becomes a text.
      prompts: as in prompt_templates.templates; one is drawn each time for a caption of at most
        `prompt_words` words, and for a class's name as prompt_classes specifies. () for no prompts.
      prompt_words: words are separated by white space.
      prompt_classes: "all", all names of classes get a prompt (microsoft/UniCL, prompt_engineering.py);
        "short", those of at most `prompt_words` words, as captions do (Florence, arXiv 2111.11432,
        section 2.1).
      augment: False reads all texts without prompts, for a later stage.

    Raises:
      ValueError: for unknown values, and for options without effect.
    """

    captions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    class_key: str = ""
    label_set: str | Sequence[str] = ""
    prompts: str | Sequence[str] = ()
    prompt_words: int = 2
    prompt_classes: str = "all"
    augment: bool = True

    counter: ClassVar[str] = "replaced_texts"
    needs_tokenizer: ClassVar[bool] = True

    def __post_init__(self):
        if self.class_key and self.captions:
            raise ValueError(f"class_key is {self.class_key!r}; with it captions must be dict()")
        if not self.captions and not self.class_key:
            raise ValueError("captions is missing or empty; without class_key it must name a key at least")
        if self.captions and not any(self.captions.values()):
            raise ValueError("captions: one of them must have a weight above 0")
        if self.prompt_classes not in PROMPT_CLASSES:
            raise ValueError(f"prompt_classes is {self.prompt_classes!r}; use {' or '.join(PROMPT_CLASSES)}")
        self._check_effects()

    def _check_effects(self):
        """Raises ValueError for an option that nothing reads."""
        if self.label_set and not self.class_key:
            raise ValueError(f"label_set is {self.label_set!r}; without class_key it has no effect: drop it")
        if self.prompts:
            return
        for option in ("prompt_words", "prompt_classes", "augment"):
            value, default = getattr(self, option), type(self).__dataclass_fields__[option].default
            if value != default:
                raise ValueError(f"{option} is {value!r}; without prompts it has no effect: drop it")

    def check(self):
        _ = self._templates
        if self.class_key:
            _ = self._classes

    def zeros(self):
        return _empty(self.context.length)

    def load(self, record, draws):
        description = self._describe(record, draws.rng)
        draws.descriptions[self.context.name] = description
        is_class = bool(description.class_id)
        text = prompt_templates.cleaned(description.text) if is_class else description.text
        # A prompt must not hide that there is no text.
        tokens = _tokens(self.context.tokenizer, text)
        if not self._has_prompt(text, is_class):
            return tokens
        template = self._templates[draws.rng.integers(len(self._templates))]
        return _tokens(self.context.tokenizer, template.replace("{}", text))

    def keys(self):
        if self.class_key:
            return dict(class_key=self.class_key)
        return {f"captions.{key}": key for key, weight in self.captions.items() if weight}

    def missing_keys(self, present):
        """Captions' keys only if none of them is present: one suffices."""
        missing = super().missing_keys(present)
        if self.class_key:
            return missing
        return {"captions": ", ".join(missing.values())} if len(missing) == len(self.keys()) else {}

    def encoder_inputs(self, value, key, train):
        del key, train
        return dict(value)

    def _describe(self, record, rng) -> Description:
        if not self.class_key:
            return Description(draw_caption(record, self.captions, rng))
        number = self._labels.number(record)
        label, place = self._labels.names[number], self._classes.classes[number]
        if place < 0:
            raise BadValue(f"the class {label!r} is none of {self.label_set}")
        return Description(self._classes.names[place], f"{number} {label}")

    def _has_prompt(self, text, is_class) -> bool:
        if not self._templates:
            return False
        return (is_class and self.prompt_classes == "all") or len(text.split()) <= self.prompt_words

    @functools.cached_property
    def _templates(self) -> tuple[str, ...]:
        return prompt_templates.templates(self.prompts) if self.prompts and self.augment else ()

    @functools.cached_property
    def _labels(self) -> Labels:
        return sources.labels(self.context.source, self.class_key)

    @functools.cached_property
    def _classes(self) -> LabelSet:
        return label_sets.build(self.label_set, self._labels.names)


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
