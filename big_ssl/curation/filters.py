"""ALIGN's rules for noisy image-text pairs (Jia et al. 2021, arXiv 2102.05918, section 3.1).

A rule is a pure function from an image's or a text's facts to whether to drop it. The rules are in the
paper's order, and the first that applies is the reason. counting.py (one machine) and beam_pipeline.py (many)
compute the facts that depend on the whole dataset: texts per image, images per text, n-gram frequencies.

Not included: ALIGN's removal of pornographic images, which needs a classifier.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from big_ssl.curation import languages
from big_ssl.curation.limits import Limits


class Item(NamedTuple):
    """A record, reduced to what the rules need.

    id: unique; digest: a hash of the image file; width, height: in pixels, 0 if unknown; duplicate: whether
    the image is a near-duplicate of one in an evaluation set.
    """

    id: int
    digest: str
    width: int
    height: int
    texts: tuple[str, ...]
    duplicate: bool = False


class ImageFacts(NamedTuple):
    """texts: the number of distinct texts with this image in the dataset."""

    width: int
    height: int
    texts: int
    duplicate: bool


class TextFacts(NamedTuple):
    """images: the number of distinct images with this text; rare: whether it contains a rare n-gram."""

    text: str
    images: int
    rare: bool


class Decision(NamedTuple):
    """The decision on one record.

    pairs: its number of texts; image: the reason to drop the image, "" to keep it; texts: the same for each
    text, () if an image rule drops the record; kept: the texts to keep.
    """

    id: int
    pairs: int
    image: str
    texts: tuple[str, ...]
    kept: tuple[str, ...]


Facts = TypeVar("Facts", ImageFacts, TextFacts)

# Underscores belong to words: "alt_img" and "2_dead_frogs" are one word. So do apostrophes within a word.
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def unigrams(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def ngrams(text: str) -> list[str]:
    """The unigrams and the bigrams (two words with a space) of a text."""
    words = unigrams(text)
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


def text_key(text: str) -> str:
    """The key by which texts are equal: their words, or the stripped text if it has none."""
    return " ".join(unigrams(text)) or text.strip()


def frequency_floor(histogram: Mapping[int, int], most: int) -> int:
    """The number of occurrences from which an n-gram is among the `most` most frequent.

    histogram: {occurrences: number of n-grams}. The floor is the smallest that admits at most `most`
    n-grams, so ties are admitted or rejected together, in no particular order.
    """
    admitted, floor = 0, max(histogram, default=0) + 1
    for occurrences in sorted(histogram, reverse=True):
        admitted += histogram[occurrences]
        if admitted > most:
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
# The paper's dataset is English, but the paper does not specify that filter. It runs last: it is the slowest.
TEXT_RULES: dict[str, Callable[[TextFacts, Limits], bool]] = {
    "shared": _shared,
    "rare": _rare,
    "short": _short,
    "long": _long,
    "foreign": _foreign,
}
# The reason for an image that no image rule drops but whose texts are all dropped.
NO_TEXT = "no_text"


def first_reason(facts: Facts, rules: Mapping[str, Callable[[Facts, Limits], bool]], limits: Limits) -> str:
    """The name of the first rule that drops these facts, "" if none does."""
    return next((name for name, drops in rules.items() if drops(facts, limits)), "")


def decide(item: Item, image_texts: int, texts: Sequence[TextFacts], limits: Limits) -> Decision:
    """Applies the rules to one record.

    Args:
      item: the record.
      image_texts: the number of distinct texts with its image.
      texts: the facts of item.texts, in order.
      limits: the thresholds.

    Returns:
      The Decision; NO_TEXT drops an image without a text to keep.
    """
    facts = ImageFacts(item.width, item.height, image_texts, item.duplicate)
    if reason := first_reason(facts, IMAGE_RULES, limits):
        return Decision(item.id, len(item.texts), reason, (), ())
    reasons = tuple(first_reason(text, TEXT_RULES, limits) for text in texts)
    kept = tuple(text for text, reason in zip(item.texts, reasons, strict=True) if not reason)
    return Decision(item.id, len(item.texts), "" if kept else NO_TEXT, reasons, kept)
