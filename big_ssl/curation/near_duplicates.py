"""Pictures that are near-duplicates of others, by the cosine of their embeddings."""

import numpy as np

# Rows of a block of similarities: with this, 2**14 references are 256 MiB of them.
_BLOCK = 4096
# ALIGN's (appendix A), for embeddings of a model of its own; another model needs its own look.
THRESHOLD = 0.975


def near_duplicates(
    embeddings: np.ndarray, references: np.ndarray, threshold: float = THRESHOLD
) -> np.ndarray:
    """bool[N]: which rows have a reference at a cosine above the threshold. Exact, over all pairs.

    embeddings: float[N, D]; references: float[M, D], of any length. A row of zeros is near nothing.
    Raises ValueError where the widths differ, or a value is not finite.
    """
    if embeddings.ndim != 2 or references.ndim != 2 or embeddings.shape[1] != references.shape[1]:
        shapes = f"{list(embeddings.shape)} and {list(references.shape)}"
        raise ValueError(f"embeddings and references are {shapes}; they must be [N, D] and [M, D]")
    near = np.zeros(len(embeddings), bool)
    for j in range(0, len(references), 4 * _BLOCK):
        some = _unit(references[j : j + 4 * _BLOCK])
        for i in range(0, len(embeddings), _BLOCK):
            block = slice(i, i + _BLOCK)
            near[block] |= (_unit(embeddings[block]) @ some.T).max(axis=1, initial=-1.0) > threshold
    return near


def _unit(rows):
    """float32, of length 1; rows of zeros stay."""
    rows = np.asarray(rows, np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("embeddings hold a value that is not finite")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
