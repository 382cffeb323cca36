"""Near-duplicates by cosine: the threshold, blocks, and errors."""

import numpy as np
import pytest

from big_ssl.curation import near_duplicates
from big_ssl.curation.near_duplicates import THRESHOLD


def at_cosine(cosine):
    return np.array([cosine, np.sqrt(1 - cosine**2)], np.float64)


@pytest.mark.parametrize(
    ("cosine", "near"), [(0.9740, False), (0.9749, False), (0.9751, True), (1.0, True), (-1.0, False)]
)
def test_rows_above_the_threshold_are_duplicates(cosine, near):
    rows = near_duplicates.near_duplicates(5 * at_cosine(cosine)[None], 3 * np.array([[1.0, 0.0]]))
    assert rows.tolist() == [near]
    assert THRESHOLD == 0.975


def test_blocks_equal_the_full_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    rows, references = rng.normal(size=(23, 4)), rng.normal(size=(41, 4))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, references)]
    expected = (unit[0] @ unit[1].T > 0.8).any(axis=1)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 5)
    actual = near_duplicates.near_duplicates(rows.astype(np.float32), references, 0.8)
    assert actual.tolist() == expected.tolist()
    assert 0 < actual.sum() < 23


def test_zeros_and_no_references_give_no_duplicates():
    rows = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert near_duplicates.near_duplicates(rows, np.array([[0.0, 0.0]])).tolist() == [False, False]
    assert near_duplicates.near_duplicates(rows, np.zeros((0, 2))).tolist() == [False, False]


@pytest.mark.parametrize(
    ("rows", "message"),
    [(np.ones((2, 3)), r"are \[2, 3\] and \[4, 2\]"), (np.full((2, 2), np.nan), "not finite")],
)
def test_embeddings_that_cannot_be_compared_are_an_error(rows, message):
    with pytest.raises(ValueError, match=message):
        near_duplicates.near_duplicates(rows, np.ones((4, 2)))
