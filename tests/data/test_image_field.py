"""Image fields: normalisation and flips on the device."""

import jax
import numpy as np

from big_ssl.data.fields import Image

HALF = dict(mean=(0.5,), std=(0.5,))
CROP = dict(kind="random_crop", resize=4, size=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)


def _field(**options):
    return Image(CROP, **options).transform


def test_normalisation():
    view = _field(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    expected = (IMAGES / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.5, 0.25, 0.2])
    np.testing.assert_allclose(view(IMAGES), expected, atol=1e-6)
    default = np.asarray(_field(**HALF)(IMAGES))
    assert default.dtype == np.float32
    assert (default.min(), default.max()) == (-1, 1)


def test_half_are_mirrored_in_training_and_none_in_evaluation():
    view, plain = _field(**HALF, flip=True), np.asarray(_field(**HALF)(IMAGES))
    np.testing.assert_allclose(view(IMAGES), plain, atol=1e-6)
    out = np.asarray(view(IMAGES, jax.random.key(0)))
    mirrored = np.isclose(out, plain[:, :, ::-1], atol=1e-6).all((1, 2, 3))
    same = np.isclose(out, plain, atol=1e-6).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert 16 < mirrored.sum() < 48
    np.testing.assert_allclose(_field(**HALF)(IMAGES, jax.random.key(0)), plain, atol=1e-6)
