"""Assignment under jit against Algorithm 1 of the paper, in plain NumPy and without padding."""

import jax
import numpy as np
import pytest

from big_ssl.losses import atss, detection
from big_ssl.losses.boxes import anchor_boxes

SHAPES, STRIDES = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1)), (8, 16, 32, 64, 128)
ANCHORS = anchor_boxes(SHAPES, STRIDES)
ROWS = 7

centerness = jax.jit(detection.centerness)
assign = jax.jit(lambda boxes, valid: atss.assign(ANCHORS, boxes, valid))
# Five candidates: their deviation as a sample is 12% above the population's.
MARGINS = np.random.default_rng(0).integers(0, 40, (5, 4))
FEW = np.split(np.float32([0, 0, 128, 96] + MARGINS * [1, 1, -1, -1]), [3])
assign_few = jax.jit(lambda boxes, valid: atss.assign(FEW, boxes, valid))


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def algorithm_1(anchors, boxes, k=9):
    """The box of each anchor, -1 for the negatives; the lines' numbers are the paper's."""
    positives = {}  # {(anchor, box): IoU}
    for g, box in enumerate(boxes):  # line 1
        candidates, start = [], 0
        for level in anchors:  # lines 3 to 6
            centers = (level[:, :2] + level[:, 2:]) / 2
            distances = ((centers - (box[:2] + box[2:]) / 2) ** 2).sum(1)
            candidates += [start + i for i in np.argsort(distances, kind="stable")[:k]]
            start += len(level)
        everything = np.concatenate(anchors)
        overlaps = [iou(everything[c], box) for c in candidates]  # line 7
        threshold = np.mean(overlaps) + np.std(overlaps, ddof=1)  # lines 8 to 10
        for c, overlap in zip(candidates, overlaps, strict=True):  # lines 11 to 15
            x, y = (everything[c, :2] + everything[c, 2:]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside:
                positives[c, g] = overlap
    matched = np.full(sum(map(len, anchors)), -1)
    for c in {c for c, _ in positives}:
        matched[c] = max((g for a, g in positives if a == c), key=lambda g: (positives[c, g], -g))
    return matched


def random_scene(rng):
    """float32 boxes at eighths of a pixel: distances have ties, and none by rounding."""
    count = rng.integers(0, ROWS + 1)
    sides = np.exp(rng.uniform(np.log(4), np.log(120), (count, 2)))
    centers = rng.uniform(0, (128, 96), (count, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], 1)
    boxes = np.round(np.clip(boxes, 0, (128, 96, 128, 96)) * 8) / 8
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].astype(np.float32)


def padded(boxes, rng=None):
    """Valid rows among others, which hold zeros or, with rng, boxes that are no targets."""
    rows, valid = np.zeros((ROWS, 4), np.float32), np.zeros(ROWS, bool)
    if rng is not None:
        rows[:] = [10, 10, 90, 80]
    places = np.sort((rng or np.random.default_rng(0)).permutation(ROWS)[: len(boxes)])
    rows[places], valid[places] = boxes, True
    return rows, valid, places


def assert_assigned(boxes, rng=None, anchors=ANCHORS, assign=assign):
    rows, valid, places = padded(boxes, rng)
    expected = algorithm_1(anchors, boxes)
    expected = np.where(expected >= 0, np.append(places, -1)[expected], -1)
    found = np.asarray(assign(rows, valid))
    np.testing.assert_array_equal(found, expected)
    return found


def test_random_scenes():
    """Images without boxes are among them, and boxes without an anchor."""
    rng = np.random.default_rng(0)
    counts, positives, shared = [], 0, 0
    for _ in range(60):
        boxes = random_scene(rng)
        matched = assert_assigned(boxes, rng)
        counts.append(len(boxes))
        positives += (matched >= 0).sum()
        shared += len(boxes) > len(np.unique(matched[matched >= 0]))
    assert min(counts) == 0
    assert max(counts) == ROWS
    assert positives > 300
    assert shared  # a box that lost all of its anchors


def test_fewer_anchors_than_candidates():
    rng = np.random.default_rng(0)
    positives = 0
    for _ in range(60):
        boxes = random_scene(rng)
        positives += (assert_assigned(boxes, rng, FEW, assign_few) >= 0).sum()
    assert positives > 10


def test_centred_boxes_have_tied_candidates():
    """The centre of a box is as far from four anchors: k takes the first."""
    assert (assert_assigned(np.array([[32.0, 32, 96, 64]], np.float32)) >= 0).any()


def test_a_repeated_box_goes_to_its_first_row():
    box = np.array([20.0, 20, 70, 60], np.float32)
    matched = assert_assigned(np.stack([box, box]))
    assert len(np.unique(matched)) == 2


def test_a_centre_on_a_side_is_not_inside():
    """Anchors of stride 8 have centres at 4 + 8 i: a box from 36 excludes column 4."""
    matched = assert_assigned(np.array([[36.0, 18, 90, 58]], np.float32))
    fine = matched[: 12 * 16].reshape(12, 16)
    assert (fine[:, 4] < 0).all()


def test_empty_boxes_get_no_anchor():
    assert (np.asarray(assign(np.full((ROWS, 4), 36, np.float32), np.ones(ROWS, bool))) < 0).all()


@pytest.mark.parametrize("count", [1, 3])
def test_equal_overlaps_are_all_positive(count):
    """A small box lies inside all candidates of the only level; a sample of one has no deviation."""
    anchors = anchor_boxes([(1, count)], [8])
    box = np.array([[0.1, 0.1, 8 * count - 0.3, 7.7]], np.float32)
    matched = jax.jit(lambda b, v: atss.assign(anchors, b, v))(box, np.ones(1, bool))
    assert (np.asarray(matched) == 0).all()


def test_targets_of_a_batch():
    rng = np.random.default_rng(1)
    rows = [padded(random_scene(rng))[:2] for _ in range(3)]
    boxes, valid = (np.stack(parts) for parts in zip(*rows, strict=True))
    labels = rng.integers(0, 5, (3, ROWS))
    targets = jax.jit(jax.vmap(lambda *box: atss.targets(ANCHORS, *box)))(boxes, labels, valid)
    targets = jax.tree.map(np.asarray, targets)
    centers = (np.concatenate(ANCHORS)[:, :2] + np.concatenate(ANCHORS)[:, 2:]) / 2
    for i in range(3):
        matched = np.asarray(assign(boxes[i], valid[i]))
        positive = matched >= 0
        np.testing.assert_array_equal(targets.labels[i], np.where(positive, labels[i][matched], -1))
        np.testing.assert_array_equal(targets.boxes[i], boxes[i][matched] * positive[:, None])
        expected = np.asarray(centerness(centers, targets.boxes[i])) * positive
        np.testing.assert_allclose(targets.centerness[i], expected, atol=1e-6)
        assert (expected[positive] > 0).all()
