"""Ranking metrics, from a score matrix or embeddings."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from big_ssl.evals import split_candidates
from big_ssl.evals.batched import in_batches
from big_ssl.parallel import mesh as mesh_lib

# The number of queries whose scores are in memory at a time.
_QUERIES = 1024


def ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """int[N]: how many wrong candidates score at least as high as each query's best right one.

    scores: float[N, M], higher is nearer; positives: bool[N, M], at least one per row. A tie
    counts against the query, so that a constant score is never rewarded.
    """
    best = np.where(positives, scores, -np.inf).max(1, keepdims=True)
    # "not below" rather than "at or above": a score that is NaN counts against the query too.
    return (~(scores < best) & ~positives).sum(1)


def group_ranks(
    queries: np.ndarray, candidates: np.ndarray, query_groups: np.ndarray, candidate_groups: np.ndarray
) -> np.ndarray:
    """`ranks` by inner products; candidates in the query's group are right.

    The candidates are split over all devices, and the queries are processed in batches.

    Args:
      queries: float32[N, D].
      candidates: float32[M, D].
      query_groups: int[N].
      candidate_groups: int[M].

    Returns:
      int[N].
    """
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1))
    candidate_parts, groups = (
        split_candidates.split(mesh, lambda rows, x=x: np.asarray(x[rows]), len(candidates))
        for x in (candidates, np.asarray(candidate_groups, np.int32))
    )
    run = functools.partial(_group_ranks(mesh, len(candidates)), candidate_parts, groups)
    batch = (queries, np.asarray(query_groups, np.int32))
    return in_batches(run, mesh, batch, min(_QUERIES, len(queries))).astype(int)


@functools.cache
def _group_ranks(mesh, count):
    def ranks(candidates, groups, batch):
        queries, query_groups = batch
        scores = jnp.matmul(queries, candidates.T, precision="highest")
        there = split_candidates.are_there(candidates, count)
        right = (query_groups[:, None] == groups) & there
        best = split_candidates.joined(jnp.where(right, scores, -jnp.inf).max(1, keepdims=True))
        wrong = ~(scores < best.max(1, keepdims=True)) & ~right & there
        return split_candidates.total(wrong.sum(1))

    return split_candidates.over_devices(ranks, mesh)


def recall_at(rank: np.ndarray, k: int) -> float:
    """The fraction of queries with a right candidate among the first k."""
    return float((rank < k).mean())


def chance_at(positives: np.ndarray, k: int) -> float:
    """The expected recall_at(., k) of random scores: k / M for one right candidate in M."""
    candidates, right = positives.shape[1], positives.sum(1)
    miss = np.ones(len(positives))
    for i in range(min(k, candidates)):
        miss *= np.clip(candidates - right - i, 0, None) / (candidates - i)
    return float((1 - miss).mean())


def mean_per_class(hits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes in `labels` of the fraction of hits. hits: bool[N]; labels: int[N]."""
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def recalls(scores, positives, ks: Sequence[int], prefix: str) -> dict[str, float]:
    """{prefix + k: recall at k} for each k."""
    rank = ranks(scores, positives)
    return {f"{prefix}{k}": recall_at(rank, k) for k in ks}
