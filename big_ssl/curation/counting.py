"""The filters on one machine: the dataset's counts in memory, the records one at a time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from big_ssl.curation.filters import Decision, Item, TextFacts, decide, frequency_floor, ngrams, text_key
from big_ssl.curation.limits import Limits


class Counts(NamedTuple):
    """Counts over the dataset before filtering.

    texts: {digest: number of distinct texts}; images: {text_key: number of distinct images}; frequent: the
    n-grams that are not rare, by number of occurrences.
    """

    texts: Counter[str]
    images: Counter[str]
    frequent: frozenset[str]


def count(items: Iterable[Item], limits: Limits) -> Counts:
    """Counts the dataset before any rule drops records."""
    pairs, occurrences = set(), Counter()
    for item in items:
        for text in item.texts:
            pairs.add((item.digest, text_key(text)))
            occurrences.update(ngrams(text))
    floor = frequency_floor(Counter(occurrences.values()), limits.most_frequent)
    frequent = frozenset(ngram for ngram, times in occurrences.items() if times >= floor)
    return Counts(Counter(digest for digest, _ in pairs), Counter(key for _, key in pairs), frequent)


def decisions(items: Iterable[Item], limits: Limits) -> Iterator[Decision]:
    """Yields one decision per record, in order. Iterates over items twice."""
    counts = count(items, limits)
    for item in items:
        texts = [_facts(text, counts) for text in item.texts]
        yield decide(item, counts.texts[item.digest], texts, limits)


def _facts(text, counts):
    return TextFacts(text, counts.images[text_key(text)], not counts.frequent.issuperset(ngrams(text)))
