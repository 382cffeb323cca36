"""Images in static sizes: aspects, paddings, extreme sizes."""

import numpy as np
import pytest
from PIL import Image

from big_ssl.data.letterbox import Letterbox

BOX = Letterbox(short=48, long=80, multiple=16, filter="bilinear", fill=(1, 2, 3))


def test_an_image_keeps_its_aspect_and_is_padded_at_the_right_and_bottom():
    image = np.random.default_rng(0).integers(0, 256, (30, 35, 3), np.uint8)
    pixels, sides, original = BOX(image)
    assert (sides, original, pixels.shape) == ((48, 56), (30, 35), (48, 64, 3))
    resized = Image.fromarray(image).resize((56, 48), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels[:, :56], resized)
    assert (pixels[:, 56:] == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("size", "sides", "static"),
    [
        ((48, 48), (48, 48), (48, 48)),
        ((480, 800), (48, 80), (48, 80)),
        ((800, 480), (80, 48), (80, 48)),
        ((1, 4000), (1, 80), (48, 80)),  # the longer side decides
        ((3000, 2), (80, 1), (80, 48)),
        ((5000, 6000), (48, 58), (48, 64)),
    ],
)
def test_static_sizes(size, sides, static):
    assert BOX.sides(*size) == sides
    assert BOX.static_size(*size) == static
    assert static in BOX.static_sizes


def test_any_image_fits_into_the_square():
    assert BOX.square == (80, 80)
    assert len(BOX.static_sizes) == 9
    assert BOX(np.zeros((10, 4, 3), np.uint8), BOX.square).pixels.shape == (80, 80, 3)


def test_images_of_other_channels():
    pixels, sides, _ = Letterbox(8, 8, 8, "bicubic", (7,))(np.full((4, 8, 5), 9, np.uint8))
    assert (pixels.shape, sides) == ((8, 8, 5), (4, 8))
    assert (pixels[:4] == 9).all()
    assert (pixels[4:] == 7).all()


def test_it_follows_a_predictors_config():
    config, mean = dict(image_size=60, resize="crop 70 lanczos"), (0.2, 0.4, 1.0)
    assert Letterbox.of(config, 0, 4, mean) == Letterbox(60, 100, 4, "lanczos", (51, 102, 255))
    assert Letterbox.of(config, 90, 4, mean).long == 90
