"""Classification and retrieval on an example small enough for pencil and paper."""

import numpy as np
import pytest

from big_ssl.evals import emoji, emoji_suite

# Names a, b, c, d; b and d are unseen, c and d flags. One picture each.
DATA = emoji.NamedImages(
    images=np.zeros((4, 16, 16, 3), np.uint8),
    names=["a", "b", "c", "d"],
    labels=np.arange(4),
    unseen=np.array([False, True, False, True]),
    flag=np.array([False, False, True, True]),
)
#                    a    b    c    d
SCORES = np.array([[0.9, 0.1, 0.2, 0.3],   # a: right
                   [0.1, 0.5, 0.6, 0.2],   # b: second, behind the flag c
                   [0.8, 0.7, 0.6, 0.5],   # c: third
                   [0.1, 0.2, 0.3, 0.4]])  # d: right  # fmt: skip
PIXELS = np.array([[0.0, -np.inf, -1.0, -np.inf],
                   [0.0, -np.inf, -1.0, -np.inf],
                   [0.0, -np.inf, -1.0, -np.inf],
                   [-2.0, -np.inf, -1.0, -np.inf]])  # fmt: skip


def test_classification():
    found = emoji_suite.classification(DATA, SCORES, PIXELS, "s")
    expected = {
        "s/top1": 2 / 4, "s/top5": 1.0, "s/chance": 1 / 4, "s/pixel_1nn_top1": 1 / 4,
        "s_no_flags/top1": 1.0, "s_no_flags/chance": 1 / 2, "s_no_flags/pixel_1nn_top1": 1 / 2,
        "s_unseen/top1": 1 / 2, "s_unseen/chance": 1 / 4, "s_unseen/pixel_1nn_top1": 0.0,
        "s_unseen_no_flags/top1": 1.0, "s_unseen_no_flags/chance": 1 / 2,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_retrieval():
    found = emoji_suite.retrieval(DATA, SCORES, PIXELS, "s")
    expected = {
        "s/image_to_text_r1": 2 / 4,
        # By column: a's best picture is a, b's is c, c's a tie of b and c, d's is c.
        "s/text_to_image_r1": 1 / 4,
        "s/text_to_image_r5": 1.0,
        "s/chance_r1": 1 / 4,
        "s_no_flags/image_to_text_r1": 1.0,
        "s_no_flags/text_to_image_r1": 1.0,
        # Pictures b and d against the names b and d alone.
        "s_unseen/image_to_text_r1": 1.0,
        "s_unseen/text_to_image_r1": 1.0,
        "s_unseen/chance_r1": 1 / 2,
        "s_unseen_no_flags/chance_r1": 1.0,
        # Pixels know nothing of unseen concepts, and a tie is no hit.
        "s_unseen/pixel_1nn_image_to_text_r1": 0.0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_names_without_an_image_are_candidates_of_classification_only():
    data = emoji.NamedImages(
        images=DATA.images[:2], names=DATA.names, labels=np.array([0, 1]), unseen=DATA.unseen, flag=DATA.flag
    )
    scores = SCORES[:2]
    assert emoji_suite.classification(data, scores, PIXELS[:2], "s")["s/top1"] == 1 / 2  # b loses to c
    assert emoji_suite.retrieval(data, scores, PIXELS[:2], "s")["s/image_to_text_r1"] == 1.0
