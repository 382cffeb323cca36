"""The filters on one machine: the whole set's counts in memory, the records one after another."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from big_ssl.curation.filters import Item, TextFacts, Verdict, frequency_floor, judge, ngrams, text_key
from big_ssl.curation.limits import Limits


class Counts(NamedTuple):
    """texts: of a picture, by digest; images: of a text, by text_key; frequent: the n-grams that aren't rare.

    Different texts and different pictures count; n-grams count each time they occur.
    """

    texts: Counter[str]
    images: Counter[str]
    frequent: frozenset[str]


def count(items: Iterable[Item], limits: Limits) -> Counts:
    """Counts the raw set, that is before any rule drops something of it."""
    pairs, occurrences = set(), Counter()
    for item in items:
        for text in item.texts:
            pairs.add((item.digest, text_key(text)))
            occurrences.update(ngrams(text))
    floor = frequency_floor(Counter(occurrences.values()), limits.most_frequent)
    frequent = frozenset(ngram for ngram, times in occurrences.items() if times >= floor)
    return Counts(Counter(digest for digest, _ in pairs), Counter(key for _, key in pairs), frequent)


def verdicts(items: Iterable[Item], limits: Limits) -> Iterator[Verdict]:
    """One verdict a record, in order. items: goes through twice."""
    counts = count(items, limits)
    for item in items:
        texts = [_facts(text, counts) for text in item.texts]
        yield judge(item, counts.texts[item.digest], texts, limits)


def _facts(text, counts):
    return TextFacts(text, counts.images[text_key(text)], not counts.frequent.issuperset(ngrams(text)))
