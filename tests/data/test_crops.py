"""Random crops of an image, on the host."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from big_ssl.data import crops as crop_kinds
from big_ssl.data.crops import RandomCrop, RandomResizedCrop, RandomScaleCrop

RNG = np.random.default_rng(0)


def draw(crop, image, rng=RNG):
    """The crops' pixels, of an image that is prepared before."""
    prepared = crop.prepare(image)
    return crop.render(prepared, crop.draw(prepared, rng))


def gradient(width, height):
    """Red grows from left to right, green from top to bottom: a pixel says where it was."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))


def test_a_window_lies_anywhere_on_the_longer_side():
    """CLIP's random square crop of the resized picture: not of its middle alone."""
    view = RandomCrop(resize=16, size=16)
    assert view.prepare(gradient(64, 16)).pixels.shape == (16, 64, 3)
    crops = [draw(view, gradient(64, 16)) for _ in range(200)]
    assert {crop.shape for crop in crops} == {view.shape}
    starts = [crop[:, 0, 0].mean() for crop in crops]
    assert min(starts) < 15
    assert max(starts) > 175
    assert np.std([crop[0, 0, 1] for crop in crops]) == 0


def test_stretching_keeps_all_of_the_picture():
    prepared = RandomCrop(resize=16, size=12, resize_mode="stretch").prepare(gradient(64, 16)).pixels
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
    crops = draw(view, gradient(64, 64))
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
    crops = draw(view, image, np.random.default_rng(1))
    again = draw(RandomResizedCrop(size=16, scale=(0.1, 1.0), count=3), image, np.random.default_rng(1))
    np.testing.assert_array_equal(crops, again)
    np.testing.assert_array_equal(np.asarray(image), before)


def test_what_never_fits_is_the_largest_middle_window():
    view = RandomResizedCrop(size=8, scale=(0.9, 1.0))
    assert view._box(400, 10, RNG) == (193, 0, 206, 10)
    assert view._box(10, 400, RNG) == (0, 193, 10, 206)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="random_crop", resize=8, size=9), "^size is 9; it must be between 1 and resize, 8"),
        (
            dict(kind="random_crop", resize=8, size=8, resize_mode="pad"),
            "^resize_mode is 'pad'; use crop or s",
        ),
        (
            dict(kind="window", resize=8, size=8),
            "^kind is 'window'; there are random_crop, random_resized_crop",
        ),
        (dict(kind="random_resized_crop", size=0, scale=(0.1, 1)), "^size is 0 and count 1"),
        (
            dict(kind="random_resized_crop", size=8, scale=(0.5, 0.1)),
            r"^scale is \(0.5, 0.1\); .* rising",
        ),
        (dict(kind="random_resized_crop", size=8, scale=(0.5, 2)), r"^scale is \(0.5, 2\)"),
    ],
)
def test_options_that_can_not_be(options, message):
    with pytest.raises(ValueError, match=message):
        crop_kinds.build(options)


@pytest.mark.parametrize(
    "crop",
    [RandomCrop(16, 12), RandomCrop(16, 12, "stretch"), RandomResizedCrop(12, (0.2, 0.9), 2)],
)
@pytest.mark.parametrize("size", [(40, 30), (30, 70), (3, 200)])
def test_fractions_are_where_the_pixels_are_from(crop, size):
    """By the gradient: what a pixel shows is where it lay in the whole image."""
    prepared = crop.prepare(gradient(*size))
    geometries = crop.draw(prepared, RNG)
    assert prepared.size == size
    pixels = crop.render(prepared, geometries).reshape(-1, 12, 12, 3) / 255
    for image, (_, (left, top, right, bottom)) in zip(pixels, geometries, strict=True):
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        # The gradient's ends are the centres of the outermost pixels; bicubic edges are not exact.
        for channel, start, stop, axis, side in ((0, left, right, 0, size[0]), (1, top, bottom, 1, size[1])):
            line = image[..., channel].mean(axis)
            centers = start + (np.arange(12) + 0.5) / 12 * (stop - start)
            expected = np.clip((centers * side - 0.5) / (side - 1), 0, 1)
            np.testing.assert_allclose(line, expected, atol=0.03 + 0.3 / side)


def test_large_scale_jitter_resizes_into_its_range():
    crop = RandomScaleCrop(size=64, scale=(0.1, 2.0), fill=77)
    prepared, factors, rng = crop.prepare(gradient(120, 80)), [], np.random.default_rng(0)
    for _ in range(300):
        ((_, _, right, bottom), fractions), = crop.draw(prepared, rng)  # fmt: skip
        factors.append(right / fractions[2] / 64)  # of the longer side
        assert bottom / fractions[3] == pytest.approx(right / fractions[2] * 2 / 3, abs=1)
    assert min(factors) == pytest.approx(0.1, abs=0.02)
    assert max(factors) == pytest.approx(2, abs=0.02)
    assert np.mean(np.array(factors) < 1.05) == pytest.approx(0.5, abs=0.1)


def test_the_crop_of_ade20k_is_limited_by_both_sides():
    crop = RandomScaleCrop(size=512, scale=(1.0, 1.0), short=512, long=2048)
    for size, resized in (((640, 480), (683, 512)), ((3000, 500), (2048, 341)), ((480, 640), (512, 683))):
        ((_, _, right, bottom), fractions), = crop.draw(crop.prepare(gradient(*size)), RNG)  # fmt: skip
        assert (right / fractions[2], bottom / fractions[3]) == pytest.approx(resized)


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.0, 1.7])
def test_a_scaled_crop_is_that_of_the_resized_image(factor):
    image = gradient(120, 80)
    crop = RandomScaleCrop(size=48, scale=(factor, factor), fill=77)
    prepared = crop.prepare(image)
    for _ in range(5):
        geometries = crop.draw(prepared, RNG)
        pixels = crop.render(prepared, geometries)
        ((left, top, right, bottom), fractions), = geometries  # fmt: skip
        resized = [round(right / fractions[2]), round(bottom / fractions[3])]
        whole = np.full((200, 200, 3), 77)
        whole[: resized[1], : resized[0]] = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
        np.testing.assert_allclose(pixels, whole[top:bottom, left:right], atol=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=0), "size is 0; it must be at least 1"),
        (dict(scale=(0, 1)), "scale is (0, 1); it must be a rising pair above 0"),
        (dict(short=9, long=8), "short is 9; it must lie between 0 and long, 8"),
        (dict(fill=256), "fill is 256; it must lie between 0 and 255"),
    ],
)
def test_an_invalid_scaled_crop_is_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        crop_kinds.build(dict(kind="random_scale_crop", size=8) | options)
