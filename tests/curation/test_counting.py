"""The filters on one machine: counts over the dataset, and the funnel of real noisy captions."""

import pathlib
from collections import Counter

import pytest

from big_ssl.curation import counting, funnel
from big_ssl.curation.filters import Item
from big_ssl.curation.limits import Limits
from big_ssl.curation.records import Items
from big_ssl.data.sources import ParquetPairs

SAMPLE = str(pathlib.Path(__file__).parents[1] / "data" / "openclipart_sample.parquet")
# {rule: (images, pairs)}, checked against plain loops and Counter.most_common.
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
def decisions(sample):
    return list(counting.decisions(sample, LIMITS))


def test_distinct_texts_and_distinct_images_are_counted():
    items = [
        item(0, "p", "a cat", "A cat!", "a dog"),
        item(1, "p", "a cat"),
        item(2, "q", "a cat"),
        item(3, "r"),
    ]
    counts = counting.count(items, LIMITS)
    assert counts.texts == Counter(p=2, q=1)
    assert counts.images == Counter({"a cat": 2, "a dog": 1})


def test_ngrams_are_rare_by_number_of_occurrences():
    # a: 5 times; "a cat" and cat: 4; the rest once.
    items = [item(0, "p", "a cat", "A cat!", "a dog"), item(1, "p", "a cat"), item(2, "q", "a cat")]
    limits = Limits(languages=(), most_frequent=3, min_unigrams=1)
    assert counting.count(items, limits).frequent == {"a", "cat", "a cat"}
    assert [decision.texts for decision in counting.decisions(items, limits)] == [
        ("", "", "rare"),
        ("",),
        ("",),
    ]
    strict = Limits(languages=(), most_frequent=2, min_unigrams=1)
    assert counting.count(items, strict).frequent == {"a"}


def test_a_rare_bigram_of_frequent_words_is_rare():
    items = [item(i, str(i), "a b c") for i in range(5)] + [item(9, "x", "c b a")]
    limits = Limits(languages=(), most_frequent=5)
    assert [decision.image for decision in counting.decisions(items, limits)] == [""] * 5 + ["no_text"]


@pytest.mark.parametrize(("images", "reason"), [(10, ""), (11, "shared")])
def test_a_text_shared_by_many_images_is_dropped_from_all(images, reason):
    items = [item(i, str(i), "the same three words") for i in range(images)]
    items += [item(50 + i, "0", "the same three words") for i in range(5)]  # an image that repeats
    assert {decision.texts for decision in counting.decisions(items, LIMITS)} == {(reason,)}


@pytest.mark.parametrize(("texts", "reason"), [(1000, ""), (1001, "many_texts")])
def test_an_image_with_many_texts_is_dropped_from_all_records(texts, reason):
    half = [f"number {i} of many" for i in range(texts)]
    items = [item(0, "p", *half[:500]), item(1, "p", *half[400:]), item(2, "q", "one of many texts")]
    limits = Limits(languages=())
    assert [decision.image for decision in counting.decisions(items, limits)] == [reason, reason, ""]


def test_the_funnel_of_real_captions(decisions):
    """Two texts have more than 10 images: 34 titles "gramastar" and 15 with a collection and a date, 49."""
    actual = funnel.table(funnel.total(map(funnel.tally, decisions)))
    rows = {row["rule"]: (row["images"], row["pairs"]) for row in actual["dropped"]}
    assert {rule: counts for rule, counts in rows.items() if any(counts)} == GOLDEN
    assert (actual["output"]["images"], actual["output"]["pairs"]) == (36, 41)


def test_the_input_is_the_output_plus_the_dropped(decisions, sample):
    actual = funnel.table(funnel.total(map(funnel.tally, decisions)))
    assert actual["input"] == dict(images=len(sample), pairs=sum(len(item.texts) for item in sample))
    for column in ("images", "pairs"):
        dropped = sum(row[column] for row in actual["dropped"])
        assert actual["input"][column] == actual["output"][column] + dropped
    assert actual["output"]["images"] == sum(bool(decision.kept) for decision in decisions) > 0
    assert actual["output"]["pairs"] == sum(len(decision.kept) for decision in decisions)


def test_kept_texts_are_a_subset_without_file_names(decisions, sample):
    kept = {text for decision in decisions for text in decision.kept}
    everything = {text for item in sample for text in item.texts}
    assert kept < everything
    assert "gramastar" in everything - kept
