"""Ranks, recall and chance against scikit-learn, brute force, combinatorics and simulation."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from big_ssl.evals.ranking import chance_at, group_ranks, ranks, recall_at, recalls


def brute_rank(scores, positives):
    """Sorts one query's candidates, the wrong ones first where scores tie."""
    order = sorted(zip(-scores, positives, strict=True))
    return next(place for place, (_, right) in enumerate(order) if right)


def draw(queries=60, candidates=9, levels=4):
    """Scores with many ties, and one to three positives a query."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, levels, (queries, candidates)).astype(np.float32)
    many = rng.integers(1, 4, queries)
    positives = np.stack([rng.permutation(candidates) < n for n in many])
    return scores, positives


@pytest.mark.parametrize("k", [1, 3, 5])
def test_recall_of_one_positive_is_scikit_learns_top_k_accuracy(k):
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(80, 7)), rng.integers(0, 7, 80)
    scores[np.arange(80), labels] += 0.7
    found = recall_at(ranks(scores, np.eye(7, dtype=bool)[labels]), k)
    assert found == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=np.arange(7)))
    assert 0.2 < found < 1


def test_ranks_with_ties_and_several_positives_agree_with_sorting():
    scores, positives = draw()
    expected = [brute_rank(s, p) for s, p in zip(scores, positives, strict=True)]
    np.testing.assert_array_equal(ranks(scores, positives), expected)
    assert len(set(expected)) > 3


def test_another_positive_above_the_best_is_no_rival():
    scores, positives = np.array([[3.0, 2.0, 1.0]]), np.array([[True, True, False]])
    assert ranks(scores, positives) == [0]
    assert ranks(scores, np.array([[False, True, True]])) == [1]


def test_a_constant_score_is_never_rewarded():
    scores, positives = np.full((2, 4), 0.5), np.array([[1, 0, 0, 0], [1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(ranks(scores, positives), [3, 2])


@pytest.mark.parametrize("what", ["all", "right", "wrong"])
def test_scores_that_are_not_numbers_are_never_rewarded(what):
    """A diverged model's."""
    positives = np.eye(3, dtype=bool)
    bad = {"all": np.ones((3, 3), bool), "right": positives, "wrong": ~positives}[what]
    assert recall_at(ranks(np.where(bad, np.nan, 0.5), positives), 1) == 0


def test_recall_counts_ranks_below_k():
    rank = np.array([0, 1, 1, 4])
    assert [recall_at(rank, k) for k in (1, 2, 4, 5)] == [0.25, 0.75, 0.75, 1.0]


def test_recalls_names_each_k():
    scores, positives = draw()
    found = recalls(scores, positives, (1, 5), "text@")
    rank = ranks(scores, positives)
    assert found == {"text@1": recall_at(rank, 1), "text@5": recall_at(rank, 5)}


def test_chance_with_one_positive_is_k_in_m():
    for k in (1, 3, 8):
        assert chance_at(np.eye(8, dtype=bool), k) == pytest.approx(k / 8)
    assert chance_at(np.eye(8, dtype=bool), 20) == 1


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_chance_with_several_positives_is_hypergeometric(k):
    _, positives = draw()
    m = positives.shape[1]
    expected = [1 - math.comb(m - int(r), k) / math.comb(m, k) for r in positives.sum(1)]
    assert chance_at(positives, k) == pytest.approx(np.mean(expected))


def test_chance_is_the_mean_recall_over_every_order():
    positives = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]], bool)
    orders = [np.array(p, float) for p in itertools.permutations(range(5))]
    for k in (1, 2, 4):
        mean = np.mean([recall_at(ranks(np.tile(o, (2, 1)), positives), k) for o in orders])
        assert chance_at(positives, k) == pytest.approx(mean)


def test_chance_is_the_recall_of_random_scores():
    _, positives = draw(queries=4000)
    scores = np.random.default_rng(2).normal(size=positives.shape)
    for k in (1, 3):
        found, expected = recall_at(ranks(scores, positives), k), chance_at(positives, k)
        assert abs(found - expected) < 5 * 0.5 / math.sqrt(4000)  # five standard deviations


def test_chance_is_certain_where_every_candidate_is_right():
    assert chance_at(np.ones((2, 3), bool), 1) == 1


def test_ranks_of_groups_are_those_of_the_whole_score_matrix():
    """Candidates that the eight devices divide or not, more queries than a batch, ties between candidates."""
    rng = np.random.default_rng(3)
    for count, queries in ((5, 3), (64, 9), (101, 1030)):
        candidates = rng.integers(-2, 3, (count, 6)).astype(np.float32)  # products are exact
        asked = rng.integers(-2, 3, (queries, 6)).astype(np.float32)
        groups = np.arange(count) % max(2, count // 3)
        owners = rng.choice(groups, queries)
        expected = ranks(asked @ candidates.T, owners[:, None] == groups)
        np.testing.assert_array_equal(group_ranks(asked, candidates, owners, groups), expected)
        assert len(set(expected)) > 1
    asked[:2] = np.nan
    expected = ranks(asked @ candidates.T, owners[:, None] == groups)
    np.testing.assert_array_equal(group_ranks(asked, candidates, owners, groups), expected)
    assert (expected[:2] > 90).all()
