"""ALIGN's rules for noisy image-text pairs (Jia et al. 2021, arXiv 2102.05918, section 3.1).

A rule is a pure function of the facts of an image or of a text; it says whether to drop it. The
rules stand in the paper's order, and the first that applies is the reason. The facts that depend on
the whole set (texts per image, images per text, frequencies of n-grams) are counted elsewhere:
counting.py on one machine, beam_pipeline.py on many.

Not here: ALIGN's removal of pornographic images, which needs a classifier of one's own.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from big_ssl.curation import languages
from big_ssl.curation.limits import Limits


class Item(NamedTuple):
    """What the rules read of a record. id: unique; digest: equal for equal pictures; sides in pixels,
    0 where unknown; duplicate: of a picture of an evaluation set."""

    id: int
    digest: str
    width: int
    height: int
    texts: tuple[str, ...]
    duplicate: bool = False


class ImageFacts(NamedTuple):
    """texts: how many different texts the picture has in the whole set."""

    width: int
    height: int
    texts: int
    duplicate: bool


class TextFacts(NamedTuple):
    """images: how many different pictures have the text; rare: whether an n-gram of it is."""

    text: str
    images: int
    rare: bool


class Verdict(NamedTuple):
    """On one record. pairs: how many texts it came with; image: why it goes, "" if it stays; texts: the
    same of each text, () where a rule for images drops it; kept: the texts that stay."""

    id: int
    pairs: int
    image: str
    texts: tuple[str, ...]
    kept: tuple[str, ...]


Facts = TypeVar("Facts", ImageFacts, TextFacts)

# Letters, digits and underscores, so that "alt_img" and "2_dead_frogs" are the one word that they are to a
# search for captions; an apostrophe stays inside its word.
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def unigrams(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def ngrams(text: str) -> list[str]:
    """The unigrams and the bigrams (two words with a space) of a text."""
    words = unigrams(text)
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


def text_key(text: str) -> str:
    """What texts are the same by: their words; where there are none, the text itself."""
    return " ".join(unigrams(text)) or text.strip()


def frequency_floor(histogram: Mapping[int, int], most: int) -> int:
    """How often an n-gram must occur to be among the `most` most frequent.

    histogram: {occurrences: how many n-grams have so many}. Those that tie at the border are all in
    or all out, so that no order among equals matters: the floor is the smallest that lets at most
    `most` in.
    """
    inside, floor = 0, max(histogram, default=0) + 1
    for occurrences in sorted(histogram, reverse=True):
        inside += histogram[occurrences]
        if inside > most:
            return floor
        floor = occurrences
    return 1


def _unreadable(image: ImageFacts, limits: Limits) -> bool:
    return min(image.width, image.height) <= 0


def _small(image: ImageFacts, limits: Limits) -> bool:
    return min(image.width, image.height) <= limits.min_side


def _narrow(image: ImageFacts, limits: Limits) -> bool:
    return max(image.width, image.height) >= limits.max_aspect * min(image.width, image.height)


def _many_texts(image: ImageFacts, limits: Limits) -> bool:
    return image.texts > limits.max_texts


def _evaluation_duplicate(image: ImageFacts, limits: Limits) -> bool:
    return image.duplicate


def _shared(text: TextFacts, limits: Limits) -> bool:
    return text.images > limits.max_images


def _rare(text: TextFacts, limits: Limits) -> bool:
    return text.rare


def _short(text: TextFacts, limits: Limits) -> bool:
    return len(unigrams(text.text)) < limits.min_unigrams


def _long(text: TextFacts, limits: Limits) -> bool:
    return len(unigrams(text.text)) > limits.max_unigrams


def _foreign(text: TextFacts, limits: Limits) -> bool:
    if not limits.languages:
        return False
    return languages.foreign_odds(text.text, limits.languages) > limits.max_foreign_odds


IMAGE_RULES: dict[str, Callable[[ImageFacts, Limits], bool]] = {
    "unreadable": _unreadable,
    "small": _small,
    "narrow": _narrow,
    "many_texts": _many_texts,
    "evaluation_duplicate": _evaluation_duplicate,
}
# The paper's set is English and does not say where that is checked: here last, for it is the slowest.
TEXT_RULES: dict[str, Callable[[TextFacts, Limits], bool]] = {
    "shared": _shared,
    "rare": _rare,
    "short": _short,
    "long": _long,
    "foreign": _foreign,
}
# The reason of an image that no rule for images drops, and that is left without texts.
NO_TEXT = "no_text"


def first_reason(facts: Facts, rules: Mapping[str, Callable[[Facts, Limits], bool]], limits: Limits) -> str:
    """The name of the first rule that drops these facts, "" if none does."""
    return next((name for name, drops in rules.items() if drops(facts, limits)), "")


def judge(item: Item, image_texts: int, texts: Sequence[TextFacts], limits: Limits) -> Verdict:
    """The verdict on one record.

    image_texts: as ImageFacts.texts; texts: the facts of item.texts, in their order. An image without
    a text that stays goes too, by NO_TEXT.
    """
    facts = ImageFacts(item.width, item.height, image_texts, item.duplicate)
    if reason := first_reason(facts, IMAGE_RULES, limits):
        return Verdict(item.id, len(item.texts), reason, (), ())
    reasons = tuple(first_reason(text, TEXT_RULES, limits) for text in texts)
    kept = tuple(text for text, reason in zip(item.texts, reasons, strict=True) if not reason)
    return Verdict(item.id, len(item.texts), "" if kept else NO_TEXT, reasons, kept)
