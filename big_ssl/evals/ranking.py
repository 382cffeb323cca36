"""Metrics of ranked candidates, from a score matrix."""

from collections.abc import Sequence

import numpy as np

# Queries whose scores are in memory at a time.
_QUERIES = 1024


def ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """int[N]: how many wrong candidates stand at or above each query's best right one.

    scores: float[N, M], higher is nearer; positives: bool[N, M], at least one a row. A tie
    counts against the query, so that a constant score is never rewarded.
    """
    best = np.where(positives, scores, -np.inf).max(1, keepdims=True)
    # "not below" rather than "at or above": a score that is NaN counts against the query too.
    return (~(scores < best) & ~positives).sum(1)


def group_ranks(
    queries: np.ndarray, candidates: np.ndarray, query_groups: np.ndarray, candidate_groups: np.ndarray
) -> np.ndarray:
    """int[N], `ranks` by inner products, a candidate of the query's group being right.

    queries: float32[N, D]; candidates: float32[M, D]; their groups: int[N], int[M]. Some queries at
    a time: all scores of COCO at once would be half a gigabyte, and their comparisons as much again.
    """
    found = []
    for start in range(0, len(queries), _QUERIES):
        rows = slice(start, start + _QUERIES)
        found.append(ranks(queries[rows] @ candidates.T, query_groups[rows, None] == candidate_groups[None]))
    return np.concatenate(found)


def recall_at(rank: np.ndarray, k: int) -> float:
    """The fraction of queries with a right candidate among the first k."""
    return float((rank < k).mean())


def chance_at(positives: np.ndarray, k: int) -> float:
    """What recall_at(., k) expects of random scores: one right candidate in M gives k / M."""
    candidates, right = positives.shape[1], positives.sum(1)
    miss = np.ones(len(positives))
    for i in range(min(k, candidates)):
        miss *= np.clip(candidates - right - i, 0, None) / (candidates - i)
    return float((1 - miss).mean())


def mean_per_class(hits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes that occur of the fraction of hits: bool[N]; labels: int[N]."""
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def recalls(scores, positives, ks: Sequence[int], prefix: str) -> dict[str, float]:
    """{prefix + k: recall at k} for each k."""
    rank = ranks(scores, positives)
    return {f"{prefix}{k}": recall_at(rank, k) for k in ks}
