"""Non-maximum suppression under jit against the greedy loop over all boxes."""

import functools

import jax
import numpy as np

from big_ssl.losses.nms import nms

ROWS, LIMIT = 60, 12
THRESHOLD = 0.5

run = jax.jit(functools.partial(nms, iou_threshold=THRESHOLD, limit=LIMIT))


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union else 0.0


def greedy(boxes, scores, labels):
    """The kept rows, by falling score and rising index, of those with a score."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in kept if labels[j] == labels[i]]
        if scores[i] > 0 and all(iou(boxes[j], boxes[i]) <= THRESHOLD for j in rivals):
            kept.append(i)
    return kept


def random_boxes(rng, rows=ROWS, classes=3):
    """Whole coordinates, few scores and repeated boxes: overlaps and scores have ties."""
    corners = rng.integers(0, 12, (rows, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    scores = rng.integers(0, 8, rows).astype(np.float32) / 8
    return boxes, scores, rng.integers(0, classes, rows)


def assert_kept(found, boxes, scores, labels, kept):
    kept, (found_boxes, found_scores, found_labels) = kept[:LIMIT], map(np.asarray, found)
    np.testing.assert_array_equal(found_boxes[: len(kept)], boxes[kept])
    np.testing.assert_array_equal(found_scores[: len(kept)], scores[kept])
    np.testing.assert_array_equal(found_labels[: len(kept)], labels[kept])
    assert not found_boxes[len(kept) :].any()
    assert not found_scores[len(kept) :].any()
    assert (found_labels[len(kept) :] == -1).all()


def test_random_boxes():
    rng, counts = np.random.default_rng(0), []
    for i in range(40):
        # Of few classes, or of one whose boxes are nearly all dropped.
        boxes, scores, labels = random_boxes(rng, classes=1 + i % 3)
        boxes = boxes if i % 4 else np.maximum(boxes, [0, 0, 10, 10])
        kept = greedy(boxes, scores, labels)
        assert_kept(run(boxes, scores, labels), boxes, scores, labels, kept)
        counts.append(len(kept))
    assert min(counts) < LIMIT < max(counts)


def test_an_overlap_of_the_threshold_is_kept():
    boxes = np.zeros((ROWS, 4), np.float32)
    boxes[:3] = [[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 3]]  # 1/2 and 3/4 of the first
    scores = np.where(np.arange(ROWS) < 3, [0.9, *[0.8] * (ROWS - 1)], 0).astype(np.float32)
    assert_kept(run(boxes, scores, np.zeros(ROWS, int)), boxes, scores, np.zeros(ROWS, int), [0, 1])


def test_a_threshold_that_float32_rounds_up():
    """torchvision compares float32 overlaps with the number itself; 3/5 in float32 is above 0.6."""
    boxes = np.float32([[0, 0, 5, 1], [0, 0, 3, 1]])
    scores, labels = np.float32([0.9, 0.8]), np.zeros(2, int)
    both = jax.jit(lambda *x: [nms(*x, threshold, 2)[1] for threshold in (0.6, np.float32(0.6))])
    np.testing.assert_array_equal(both(boxes, scores, labels), np.float32([[0.9, 0], scores]))


def test_the_first_of_equal_boxes_is_kept():
    boxes = np.tile(np.float32([1, 1, 5, 5]), (ROWS, 1))
    labels = np.arange(ROWS) // 20
    scores = np.full(ROWS, 0.5, np.float32)
    scores[[25, 30]] = 0.75  # of class 1
    assert_kept(run(boxes, scores, labels), boxes, scores, labels, [25, 0, 40])


def test_empty_boxes_are_dropped_by_none():
    boxes, scores = np.zeros((ROWS, 4), np.float32), np.zeros(ROWS, np.float32)
    scores[[3, 7]] = 0.5, 0.25
    assert_kept(run(boxes, scores, np.zeros(ROWS, int)), boxes, scores, np.zeros(ROWS, int), [3, 7])


def test_a_batch():
    rng = np.random.default_rng(1)
    images = [random_boxes(rng) for _ in range(2)]
    found = jax.jit(jax.vmap(run))(*(np.stack(parts) for parts in zip(*images, strict=True)))
    for i, image in enumerate(images):
        assert_kept([part[i] for part in found], *image, greedy(*image))
