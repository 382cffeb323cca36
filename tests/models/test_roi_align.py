"""RoIAlign against float64 sampling, one sample at a time."""

import numpy as np
import pytest

from big_ssl.models.roi_align import roi_align


def bilinear(image, y, x):
    """The sample at a place whose integers are centres of pixels; clamped, and 0 far outside."""
    height, width = image.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    above = (1 - fx) * image[top, left] + fx * image[top, right]
    below = (1 - fx) * image[bottom, left] + fx * image[bottom, right]
    return (1 - fy) * above + fy * below


def reference(image, box, size, samples):
    result = np.zeros((size, size, image.shape[2]))
    left, top, right, bottom = box
    for i in range(size * samples):
        for j in range(size * samples):
            y = top + (bottom - top) * (i + 0.5) / (size * samples) - 0.5
            x = left + (right - left) * (j + 0.5) / (size * samples) - 0.5
            result[i // samples, j // samples] += bilinear(image, y, x) / samples**2
    return result


@pytest.mark.parametrize(("size", "samples"), [(3, 2), (4, 1)])
def test_a_float64_reference(size, samples):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(9, 12, 2))
    boxes = np.array(
        [(1, 2, 7, 8), (0, 0, 12, 9), (-5, -4, 4, 20), (3.3, 4.1, 3.9, 4.2), (20, 2, 30, 5)], float
    )
    expected = [reference(image, box, size, samples) for box in boxes]
    np.testing.assert_allclose(roi_align(image, boxes, size, samples), expected, atol=1e-5)
    assert not np.any(expected[-1])


def test_the_whole_image_at_its_own_size_is_the_image():
    image = np.random.default_rng(1).normal(size=(6, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(roi_align(image, [(0, 0, 6, 6)], 6, 1)[0], image, atol=1e-6)
