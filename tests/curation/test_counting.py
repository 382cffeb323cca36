"""The filters on one machine: what is counted over the whole set, and the funnel of real noisy captions."""

import pathlib
from collections import Counter

import pytest

from big_ssl.curation import counting, funnel
from big_ssl.curation.filters import Item
from big_ssl.curation.limits import Limits
from big_ssl.curation.records import Items
from big_ssl.data.sources import ParquetPairs

SAMPLE = str(pathlib.Path(__file__).parents[1] / "data" / "openclipart_sample.parquet")
# {rule: (images, pairs)}, checked against a count by plain loops and Counter.most_common.
GOLDEN = dict(
    small=(1, 1), narrow=(2, 3), shared=(0, 49), rare=(0, 97), short=(0, 42), long=(0, 9), no_text=(162, 0)
)
KINDS, SIDES = ("title", "description"), ("width", "height")
LIMITS = Limits(languages=(), min_side=32, max_unigrams=8, most_frequent=400)


def item(id, digest, *texts):
    return Item(id, digest, 300, 300, texts)


@pytest.fixture(scope="module")
def sample():
    return Items(ParquetPairs(SAMPLE, text_keys=(*KINDS, *SIDES)), KINDS, SIDES)


@pytest.fixture(scope="module")
def judged(sample):
    return list(counting.verdicts(sample, LIMITS))


def test_different_texts_and_different_pictures_count():
    items = [
        item(0, "p", "a cat", "A cat!", "a dog"),
        item(1, "p", "a cat"),
        item(2, "q", "a cat"),
        item(3, "r"),
    ]
    counts = counting.count(items, LIMITS)
    assert counts.texts == Counter(p=2, q=1)
    assert counts.images == Counter({"a cat": 2, "a dog": 1})


def test_an_ngram_counts_each_time_and_decides_what_is_rare():
    # a: 5 times; "a cat" and cat: 4; the rest once.
    items = [item(0, "p", "a cat", "A cat!", "a dog"), item(1, "p", "a cat"), item(2, "q", "a cat")]
    limits = Limits(languages=(), most_frequent=3, min_unigrams=1)
    assert counting.count(items, limits).frequent == {"a", "cat", "a cat"}
    assert [verdict.texts for verdict in counting.verdicts(items, limits)] == [("", "", "rare"), ("",), ("",)]
    strict = Limits(languages=(), most_frequent=2, min_unigrams=1)
    assert counting.count(items, strict).frequent == {"a"}


def test_a_rare_bigram_of_frequent_words_is_rare():
    items = [item(i, str(i), "a b c") for i in range(5)] + [item(9, "x", "c b a")]
    limits = Limits(languages=(), most_frequent=5)
    assert [verdict.image for verdict in counting.verdicts(items, limits)] == [""] * 5 + ["no_text"]


@pytest.mark.parametrize(("pictures", "reason"), [(10, ""), (11, "shared")])
def test_a_text_of_many_pictures_goes_from_all_of_them(pictures, reason):
    items = [item(i, str(i), "the same three words") for i in range(pictures)]
    items += [item(50 + i, "0", "the same three words") for i in range(5)]  # one picture, found again
    assert {verdict.texts for verdict in counting.verdicts(items, LIMITS)} == {(reason,)}


@pytest.mark.parametrize(("texts", "reason"), [(1000, ""), (1001, "many_texts")])
def test_a_picture_of_many_texts_goes_wherever_it_was_found(texts, reason):
    half = [f"number {i} of many" for i in range(texts)]
    items = [item(0, "p", *half[:500]), item(1, "p", *half[400:]), item(2, "q", "one of many texts")]
    limits = Limits(languages=())
    assert [verdict.image for verdict in counting.verdicts(items, limits)] == [reason, reason, ""]


def test_the_funnel_of_real_captions(judged):
    """49 is 34 titles "gramastar" and 15 of a collection and a date, the two that more than 10 share."""
    found = funnel.table(funnel.total(map(funnel.tally, judged)))
    rows = {row["rule"]: (row["images"], row["pairs"]) for row in found["dropped"]}
    assert {rule: counts for rule, counts in rows.items() if any(counts)} == GOLDEN
    assert (found["output"]["images"], found["output"]["pairs"]) == (36, 41)


def test_what_came_in_stayed_or_has_a_reason(judged, sample):
    found = funnel.table(funnel.total(map(funnel.tally, judged)))
    assert found["input"] == dict(images=len(sample), pairs=sum(len(item.texts) for item in sample))
    for column in ("images", "pairs"):
        dropped = sum(row[column] for row in found["dropped"])
        assert found["input"][column] == found["output"][column] + dropped
    assert found["output"]["images"] == sum(bool(verdict.kept) for verdict in judged) > 0
    assert found["output"]["pairs"] == sum(len(verdict.kept) for verdict in judged)


def test_what_stays_reads_as_captions(judged, sample):
    kept = {text for verdict in judged for text in verdict.kept}
    everything = {text for item in sample for text in item.texts}
    assert kept < everything
    assert "gramastar" in everything - kept
