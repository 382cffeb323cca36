"""Windows and crops of a picture, on the host."""

import math

import numpy as np
import pytest
from PIL import Image

from big_ssl.data import host_views
from big_ssl.data.host_views import RandomResizedCrop, Window

RNG = np.random.default_rng(0)


def gradient(width, height):
    """Red grows from left to right, green from top to bottom: a pixel says where it was."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))


def test_a_window_lies_anywhere_on_the_longer_side():
    """CLIP's random square crop of the resized picture: not of its middle alone."""
    view = Window(resize=16, crop=16)
    prepared = view.prepare(gradient(64, 16))
    assert prepared.shape == (16, 64, 3)
    crops = [view.draw(prepared, RNG) for _ in range(200)]
    assert {crop.shape for crop in crops} == {view.shape}
    starts = [crop[:, 0, 0].mean() for crop in crops]
    assert min(starts) < 15
    assert max(starts) > 175
    assert np.std([crop[0, 0, 1] for crop in crops]) == 0


def test_squash_keeps_all_of_the_picture():
    prepared = Window(resize=16, crop=12, fit="squash").prepare(gradient(64, 16))
    assert prepared.shape == (16, 16, 3)
    assert prepared[0, 0, 0] < 10
    assert prepared[0, -1, 0] > 245


def test_crops_cover_the_stated_share_and_aspect():
    view = RandomResizedCrop(size=8, scale=(0.2, 0.5), count=3)
    boxes = np.array([view._box(200, 100, RNG) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / 20_000, width / height
    assert (area.min(), area.max()) == pytest.approx((0.2, 0.5), abs=0.01)
    assert (aspect.min(), aspect.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.05)
    # Uniform in the logarithm: as many wide ones as tall ones, of those that fit at all.
    assert np.mean(aspect[area < 0.3] > 1) == pytest.approx(0.5, abs=0.06)
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 200
    assert boxes[:, 3].max() <= 100


def test_a_crop_shows_its_box():
    view = RandomResizedCrop(size=16, scale=(0.3, 0.3), ratio=(1, 1), count=2)
    crops = view.draw(view.prepare(gradient(64, 64)), RNG)
    assert crops.shape == view.shape
    assert crops.dtype == np.uint8
    for crop in crops.astype(float):
        # The side of a square of 0.3 of the area, as a share of the gradient.
        assert crop[:, -1, 0].mean() - crop[:, 0, 0].mean() == pytest.approx(
            255 * math.sqrt(0.3) * 15 / 16, abs=6
        )
    assert not np.array_equal(crops[0], crops[1])


def test_views_share_a_picture_and_leave_it_as_it_is():
    image = gradient(50, 40)
    before = np.asarray(image).copy()
    view = RandomResizedCrop(size=16, scale=(0.1, 1.0), count=3)
    crops = view.draw(view.prepare(image), np.random.default_rng(1))
    again = RandomResizedCrop(size=16, scale=(0.1, 1.0), count=3).draw(image, np.random.default_rng(1))
    np.testing.assert_array_equal(crops, again)
    np.testing.assert_array_equal(np.asarray(image), before)


def test_what_never_fits_is_the_largest_middle_window():
    view = RandomResizedCrop(size=8, scale=(0.9, 1.0))
    assert view._box(400, 10, RNG) == (193, 0, 206, 10)
    assert view._box(10, 400, RNG) == (0, 193, 10, 206)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="window", resize=8, crop=9), "views.a: crop is 9; it must be between 1 and resize, 8"),
        (dict(kind="window", resize=8, crop=8, fit="pad"), "views.a: fit is 'pad'; use crop or squash"),
        (dict(kind="random_resized_crop", size=0, scale=(0.1, 1)), "views.a: size is 0 and count 1"),
        (
            dict(kind="random_resized_crop", size=8, scale=(0.5, 0.1)),
            r"views.a: scale is \(0.5, 0.1\); .* rising",
        ),
        (dict(kind="random_resized_crop", size=8, scale=(0.5, 2)), r"views.a: scale is \(0.5, 2\)"),
    ],
)
def test_what_is_no_view_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        host_views.build(dict(a=options))
