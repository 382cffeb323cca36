"""What images are made into before a tower sees them. Agreement with the public code: tests/parity."""

import numpy as np
import pytest
from PIL import Image

from big_ssl.data import preprocessing

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("crop", ("crop", 224, "bicubic", "round")),
        ("crop 256", ("crop", 256, "bicubic", "round")),
        ("crop bilinear", ("crop", 224, "bilinear", "round")),
        ("crop 256 bilinear", ("crop", 256, "bilinear", "round")),
        ("stretch", ("stretch", 224, "bicubic", "round")),
        ("stretch bilinear", ("stretch", 224, "bilinear", "round")),
        ("stretch 346 bilinear", ("stretch", 346, "bilinear", "round")),
        ("crop nearest", ("crop", 224, "nearest", "round")),
        ("crop 256 lanczos floor", ("crop", 256, "lanczos", "floor")),
        ("crop floor", ("crop", 224, "bicubic", "floor")),
    ],
)
def test_the_words(how, expected):
    assert preprocessing.parse_resize(how, 224) == expected


@pytest.mark.parametrize(
    "how", ["", "pad", "stretch 256 256", "crop floor nearest", "crop 256 256", "256 crop"]
)
def test_other_words(how):
    with pytest.raises(ValueError, match=f"resize is '{how}'; it must be like crop, crop 256"):
        preprocessing.parse_resize(how, 224)


def test_a_crop_of_a_larger_side_is_its_middle():
    whole = preprocessing.resize(IMAGES, 16, "crop")
    larger = preprocessing.resize(IMAGES, 20, "crop")
    np.testing.assert_array_equal(preprocessing.resize(IMAGES, 16, "crop 20"), larger[:, 2:18, 2:18])
    assert (preprocessing.resize(IMAGES, 16, "crop 20") != whole).any()


def test_only_an_image_that_needs_no_resizing_is_untouched():
    small = IMAGES[:, :16, :16]
    assert preprocessing.resize(small, 16, "crop") is small
    assert preprocessing.resize(small, 16, "stretch bilinear") is small
    larger = [Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC) for image in small]
    expected = np.stack([np.asarray(image) for image in larger])[:, 2:18, 2:18]
    np.testing.assert_array_equal(preprocessing.resize(small, 16, "crop 20"), expected)


def test_bilinear_is_not_bicubic():
    expected = np.asarray(Image.fromarray(IMAGES[0]).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(preprocessing.resize(IMAGES, 8, "stretch bilinear")[0], expected)
    assert (preprocessing.resize(IMAGES, 8, "stretch")[0] != expected).any()


def test_a_configs_transform_is_that_of_the_models_it_trains():
    transform = dict(size=16, resize=20, resize_mode="stretch", filter="bilinear", mean=(0.5,), std=(0.25,))
    keys = preprocessing.model_keys(transform)
    assert keys == dict(
        image_size=16, resize="stretch 20 bilinear", views=dict(image=dict(mean=(0.5,), std=(0.25,)))
    )
    expected = preprocessing.resize(IMAGES, 16, "stretch 20 bilinear")
    np.testing.assert_array_equal(preprocessing.of(keys)(IMAGES), expected)
    pixels = preprocessing.Pixels.of(transform)(expected)
    np.testing.assert_allclose(pixels, (expected / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
