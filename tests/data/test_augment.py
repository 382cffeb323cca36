"""Colour, blur and solarisation against NumPy, colorsys and SciPy, picture by picture."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from big_ssl.data import augment
from big_ssl.data.fields import Image as ImageField

X = np.random.default_rng(0).uniform(size=(64, 9, 7, 3)).astype(np.float32)
KEY = jax.random.key(0)
HALF = dict(mean=(0.0,), std=(1.0,))


def test_downsampling_is_pillows():
    picture = np.random.default_rng(1).integers(0, 256, (1, 2, 12, 8, 3), np.uint8)
    field = ImageField(
        dict(kind="random_resized_crop", size=8, scale=(0.1, 1.0), count=2), **HALF, downsample=2
    )
    found = field.downsampled(field.transform(picture))
    assert found.shape == (1, 2, 6, 4, 3)
    for channel in range(3):
        image = Image.fromarray(picture[0, 1, ..., channel].astype(np.float32) / 255)
        expected = image.resize((4, 6), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(found[0, 1, ..., channel], expected, atol=1e-5)


def test_grey_is_luma():
    np.testing.assert_allclose(augment.grayscale(X)[..., 0], X @ [0.2989, 0.587, 0.114], rtol=1e-5)


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.3, 0.5])
def test_a_turn_of_the_hue_is_colorsys(turn):
    pixels = np.concatenate([X[0].reshape(-1, 3), np.eye(3), np.zeros((1, 3)), np.full((1, 3), 0.4)])

    def turned(rgb):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((h + turn) % 1, s, v)

    found = augment.adjust_hue(jnp.asarray(pixels)[None, None], jnp.full((1, 1, 1, 1), turn))
    np.testing.assert_allclose(found[0, 0], [turned(p) for p in pixels], atol=1e-5)


def test_blur_is_a_gaussian_of_nine_taps():
    sigma = np.linspace(0.1, 2, len(X)).astype(np.float32)
    found = augment.blur(X, sigma[:, None, None, None])
    for picture, s, blurred in zip(X, sigma, found, strict=True):
        # SciPy's "mirror" is the reflection that does not repeat the edge.
        expected = ndimage.gaussian_filter(picture, (s, s, 0), mode="mirror", radius=(4, 4, 0))
        np.testing.assert_allclose(blurred, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (0, lambda x, f: x * (1 + f)),
        (1, lambda x, f: x + f * (x - augment.grayscale(x).mean((1, 2), keepdims=True))),
        (2, lambda x, f: x + f * (x - augment.grayscale(x))),
    ],
)
def test_each_part_of_the_jitter(place, expected):
    """torchvision's blend of factor 1 + f with black, with the mean grey, with the grey picture."""
    strengths = [0.4 * (i == place) for i in range(4)]
    found = augment.color_jitter(KEY, X, strengths, 1.0)
    factor = jax.random.uniform(jax.random.split(KEY, 6)[2 + place], (64, 1, 1, 1), minval=-0.4, maxval=0.4)
    assert factor.max() > 0.3
    np.testing.assert_allclose(found, np.clip(expected(X, factor), 0, 1), atol=1e-5)


def test_every_change_comes_as_often_as_asked():
    many = jnp.broadcast_to(X[:1], (4000, *X.shape[1:]))
    for change, chance in (
        (lambda x: augment.color_jitter(KEY, x, (0.4, 0.4, 0.2, 0.1), 0.8), 0.8),
        (lambda x: augment.random_grayscale(KEY, x, 0.2), 0.2),
        (lambda x: augment.random_blur(KEY, x, 0.5), 0.5),
        (lambda x: augment.random_solarize(KEY, x, 0.2), 0.2),
    ):
        changed = (np.asarray(jax.jit(change)(many)) != np.asarray(many)).any((1, 2, 3))
        # Four standard deviations of a mean of 4,000.
        assert changed.mean() == pytest.approx(chance, abs=0.032)


def test_solarise_inverts_what_is_bright():
    found = augment.random_solarize(KEY, X, 1.0)
    np.testing.assert_allclose(found, np.where(X >= 0.5, 1 - X, X))


def test_each_crop_has_its_own_probabilities():
    """DINO's first global crop is always blurred and never solarised, the second the other way round."""
    crops = np.random.default_rng(1).integers(0, 256, (200, 2, 9, 9, 3), np.uint8)
    crop = dict(kind="random_resized_crop", size=9, scale=(0.1, 1.0), count=2)
    field = ImageField(crop, **HALF, blur_prob=(1.0, 0.0), solarize_prob=(0.0, 1.0))
    found, plain = np.asarray(field.transform(crops, KEY)), crops / np.float32(255)
    np.testing.assert_allclose(
        found[:, 1], np.where(plain[:, 1] >= 0.5, 1 - plain[:, 1], plain[:, 1]), atol=1e-6
    )
    assert (found[:, 0] != plain[:, 0]).any((1, 2, 3)).mean() > 0.9
    np.testing.assert_allclose(field.transform(crops), plain, atol=1e-6)
