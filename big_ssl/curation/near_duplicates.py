"""Near-duplicate images, by the cosine of their embeddings."""

import numpy as np

# Rows in a block of similarities: against 2**14 references a block takes 256 MiB.
_BLOCK = 4096
# ALIGN's (appendix A), for its own embedding model; check it for another model.
THRESHOLD = 0.975


def near_duplicates(
    embeddings: np.ndarray, references: np.ndarray, threshold: float = THRESHOLD
) -> np.ndarray:
    """Finds rows whose cosine to a reference is above the threshold: bool[N]. Exact, over all pairs.

    Args:
      embeddings: float[N, D], need not be normalised; rows of zeros are no duplicates.
      references: float[M, D].
      threshold: of the cosine.

    Raises:
      ValueError: if the widths differ or a value is not finite.
    """
    if embeddings.ndim != 2 or references.ndim != 2 or embeddings.shape[1] != references.shape[1]:
        shapes = f"{list(embeddings.shape)} and {list(references.shape)}"
        raise ValueError(f"embeddings and references are {shapes}; they must be [N, D] and [M, D]")
    near = np.zeros(len(embeddings), bool)
    for j in range(0, len(references), 4 * _BLOCK):
        reference_block = _normalize(references[j : j + 4 * _BLOCK])
        for i in range(0, len(embeddings), _BLOCK):
            block = slice(i, i + _BLOCK)
            cosines = _normalize(embeddings[block]) @ reference_block.T
            near[block] |= cosines.max(axis=1, initial=-1.0) > threshold
    return near


def _normalize(rows):
    """Rows divided by their L2 norm, in float32; rows of zeros stay zero."""
    rows = np.asarray(rows, np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("embeddings hold a value that is not finite")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
