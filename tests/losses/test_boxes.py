"""Anchors, the box coder and clipping."""

import numpy as np
import pytest

from big_ssl.losses import boxes as box_lib

RNG = np.random.default_rng(0)


def test_one_anchor_a_position():
    fine, coarse = box_lib.anchor_boxes([(2, 3), (1, 2)], [8, 16])
    assert fine.shape == (6, 4)
    assert coarse.shape == (2, 4)
    # Row 1, column 2 of stride 8: around (20, 12), 64 pixels wide.
    np.testing.assert_array_equal(fine[1 * 3 + 2], [20 - 32, 12 - 32, 20 + 32, 12 + 32])
    np.testing.assert_array_equal(coarse[1], [24 - 64, 8 - 64, 24 + 64, 8 + 64])


def test_sides_of_published_anchors():
    levels = box_lib.anchor_boxes([(1, 1)] * 5, [8, 16, 32, 64, 128])
    assert [float(level[0, 2] - level[0, 0]) for level in levels] == [64, 128, 256, 512, 1024]


def test_decoded_boxes():
    anchors = np.array([[0.0, 0, 10, 20], [8, 8, 24, 16]])
    deltas = np.array([[1.0, -2, 0, 0], [0, 0, 5 * np.log(2), 5 * np.log(0.5)]])
    expected = [[1, -4, 11, 16], [0, 10, 32, 14]]
    np.testing.assert_allclose(box_lib.decode_boxes(deltas, anchors), expected, atol=1e-5)


def test_encoding_inverts_decoding():
    (anchors,) = box_lib.anchor_boxes([(4, 5)], [8])
    corners = RNG.uniform(-20, 60, (20, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], -1)
    deltas = box_lib.encode_boxes(boxes, anchors)
    np.testing.assert_allclose(box_lib.decode_boxes(deltas, anchors), boxes, atol=1e-4)


def test_decoded_sizes_are_bounded():
    box = box_lib.decode_boxes(np.array([0.0, 0, 1e6, -1e6]), np.array([0.0, 0, 16, 16]))
    np.testing.assert_allclose(box, [8 - 500, 8, 8 + 500, 8], rtol=1e-5)


@pytest.mark.parametrize("batched", [False, True])
def test_clipped_boxes(batched):
    boxes, size = np.array([[-5.0, 2, 30, 8]]), (10, 20)
    if batched:
        boxes, size = np.tile(boxes, (3, 1)), (np.full(3, 10), np.full(3, 20))
    np.testing.assert_array_equal(box_lib.clip_boxes(boxes, size), [[0, 2, 20, 8]] * len(boxes))
