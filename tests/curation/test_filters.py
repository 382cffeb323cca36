"""ALIGN's rules: each at its threshold, just below and just above it; the order of reasons."""

import math

import pytest

from big_ssl.curation import languages
from big_ssl.curation.filters import (
    IMAGE_RULES,
    NO_TEXT,
    TEXT_RULES,
    Decision,
    ImageFacts,
    Item,
    TextFacts,
    decide,
    first_reason,
    frequency_floor,
    ngrams,
    text_key,
    unigrams,
)
from big_ssl.curation.limits import Limits

LIMITS = Limits(languages=())
GOOD_TEXT = "a drawing of a cat"


def image(width=640, height=480, texts=1, duplicate=False):
    return ImageFacts(width, height, texts, duplicate)


def text(words=GOOD_TEXT, images=1, rare=False):
    return TextFacts(words, images, rare)


def words(count):
    return " ".join(f"w{i}" for i in range(count))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (image(), ""),
        (image(0, 0), "unreadable"),
        (image(201, 300), ""),
        (image(200, 300), "small"),
        (image(300, 200), "small"),
        (image(300, 201), ""),
        (image(300, 899), ""),
        (image(300, 900), "narrow"),
        (image(899, 300), ""),
        (image(900, 300), "narrow"),
        (image(901, 300), "narrow"),
        (image(texts=999), ""),
        (image(texts=1000), ""),
        (image(texts=1001), "many_texts"),
        (image(duplicate=True), "evaluation_duplicate"),
    ],
)
def test_image_rules(facts, reason):
    assert first_reason(facts, IMAGE_RULES, LIMITS) == reason


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (text(), ""),
        (text(images=9), ""),
        (text(images=10), ""),
        (text(images=11), "shared"),
        (text(rare=True), "rare"),
        (text(""), "short"),
        (text("... !"), "short"),
        (text(words(2)), "short"),
        (text(words(3)), ""),
        (text(words(20)), ""),
        (text(words(21)), "long"),
        (text("2_dead_frogs"), "short"),
        (text("the cat's - paw!"), ""),
        (text("the cat's -- !"), "short"),
    ],
)
def test_text_rules(facts, reason):
    assert first_reason(facts, TEXT_RULES, LIMITS) == reason


@pytest.mark.parametrize(
    ("odds", "reason"), [(1.0, ""), (9.99, ""), (10.0, ""), (10.01, "foreign"), (math.inf, "foreign")]
)
def test_the_language_rule(odds, reason, monkeypatch):
    monkeypatch.setattr(languages, "foreign_odds", lambda text, codes: odds if codes == ("en",) else None)
    assert first_reason(text(), TEXT_RULES, Limits()) == reason


def test_any_language_needs_no_detector(monkeypatch):
    monkeypatch.delattr(languages, "foreign_odds")
    assert first_reason(text(), TEXT_RULES, LIMITS) == ""


def test_the_reason_is_the_first_rule_in_the_papers_order(monkeypatch):
    monkeypatch.setattr(languages, "foreign_odds", lambda text, codes: 99)
    strict = Limits(max_texts=1, max_images=1, min_unigrams=2, max_unigrams=2)
    # All reasons apply at first; the test fixes one after another and sees the next reason.
    wrong, seen = dict(width=0, height=0, texts=2, duplicate=True), []
    for right in (dict(width=2, height=1), dict(width=900, height=300), dict(width=300), dict(texts=1), {}):
        seen.append(first_reason(ImageFacts(**wrong), IMAGE_RULES, strict))
        wrong |= right
    assert (
        seen == list(IMAGE_RULES) == ["unreadable", "small", "narrow", "many_texts", "evaluation_duplicate"]
    )
    seen = [
        first_reason(facts, TEXT_RULES, strict)
        for facts in (text("a", 2, True), text("a", 1, True), text("a"), text("a b c"), text("a b"))
    ]
    assert seen == list(TEXT_RULES) == ["shared", "rare", "short", "long", "foreign"]


def test_the_words_of_a_text():
    actual = unigrams("The cat’s 2nd image_tid, Élan 25&id=mg!")
    assert actual == ["the", "cat’s", "2nd", "image_tid", "élan", "25", "id", "mg"]
    assert ngrams("A  b. C") == ["a", "b", "c", "a b", "b c"]
    assert ngrams("...") == []
    assert text_key(" A  Cat! ") == text_key("a cat") == "a cat"
    assert text_key(" *** ") == "***"


@pytest.mark.parametrize(
    ("most", "floor"), [(1, 9), (2, 5), (3, 5), (4, 5), (5, 2), (7, 2), (8, 1), (10**8, 1)]
)
def test_frequency_floor_admits_or_rejects_ties_together(most, floor):
    # One n-gram occurs 9 times, one 5 times, three twice, three once: 1, 2, 5 and 8 reach these counts.
    histogram = {1: 3, 9: 1, 2: 3, 5: 1}
    assert frequency_floor(histogram, most) == floor
    assert sum(count for times, count in histogram.items() if times >= floor) <= most


def test_frequency_floor_rejects_all_if_all_tie():
    assert frequency_floor({4: 3}, 2) == 5
    assert frequency_floor({}, 2) == 1


def test_a_decision_has_a_reason_for_each_text():
    item = Item(7, "d", 640, 480, (GOOD_TEXT, "too short", GOOD_TEXT))
    facts = [text(), text("too short"), text(images=11)]
    assert decide(item, 3, facts, LIMITS) == Decision(7, 3, "", ("", "short", "shared"), (GOOD_TEXT,))
    assert decide(item._replace(width=100), 3, facts, LIMITS) == Decision(7, 3, "small", (), ())
    bad = [text("x"), text("too short"), text(rare=True)]
    assert decide(item, 3, bad, LIMITS) == Decision(7, 3, NO_TEXT, ("short", "short", "rare"), ())
    assert decide(item._replace(texts=()), 0, [], LIMITS) == Decision(7, 0, NO_TEXT, (), ())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (dict(max_images=0), "limits.max_images is 0; it must be at least 1"),
        (dict(max_aspect=1.0), r"limits.max_aspect is 1.0; it must be more than 1"),
        (dict(min_unigrams=21), "limits.min_unigrams is 21, more than max_unigrams"),
        (dict(max_foreign_odds=0.5), "limits.max_foreign_odds is 0.5; it must be at least 1"),
    ],
)
def test_limits_that_nothing_passes_are_an_error(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)
