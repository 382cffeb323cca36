"""Decoding: what pictures become, and that what can't be decoded says so and no more."""

import io

import numpy as np
import pytest
from PIL import Image

from big_ssl.data import decode, emoji_drawings, sources


def _encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _noise(mode="RGB", size=(40, 30)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def _decoded(encoded, size):
    return decode.decode_rgb(encoded, lambda image: decode.resized(image, size, "crop")[0])


def test_the_same_size_is_the_same_picture():
    image = _noise(size=(16, 16))
    np.testing.assert_array_equal(_decoded(_encoded(image), 16), np.asarray(image))


def test_the_shorter_side_is_resized_and_the_longer_follows():
    assert _decoded(_encoded(_noise(size=(40, 30))), 15).shape == (15, 20, 3)
    assert _decoded(_encoded(_noise(size=(30, 40))), 60).shape == (80, 60, 3)


def test_transparency_lies_over_white():
    assert (_decoded(_encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), 8) == 255).all()
    half = _decoded(_encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), 8)
    assert abs(half.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "I", "RGBA", "LA"])
def test_every_mode_is_as_if_laid_over_white(mode):
    """Also what has no transparency, and is not laid over anything."""
    image = _noise().convert(mode)
    over = Image.new("RGBA", image.size, "white")
    over.alpha_composite(image.convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(decode._on_white(image)), np.asarray(over.convert("RGB")))


def test_a_palette_with_a_transparent_entry():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    assert (_decoded(_encoded(image), 8) == (255, 0, 0)).all()
    assert (_decoded(_encoded(image, transparency=1), 8) == 255).all()


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "WEBP"),
        ("RGB", "GIF"),
        ("RGB", "BMP"),
    ],
)
def test_every_mode_becomes_rgb(mode, form):
    decoded = _decoded(_encoded(_noise(mode), form), 24)
    assert decoded.shape == (24, 32, 3)
    assert decoded.dtype == np.uint8
    assert np.ptp(decoded) > 50


def test_cmyk_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (220, 20, 20)).convert("CMYK")
    assert abs(_decoded(_encoded(red, "JPEG"), 16).astype(int) - (220, 20, 20)).max() < 12


def test_sixteen_bits_and_one_bit():
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    assert _decoded(_encoded(deep), 8).shape == (8, 8, 3)
    assert (_decoded(_encoded(Image.new("1", (8, 8), 1)), 8) == 255).all()


def test_one_pixel_fills_the_square():
    assert (_decoded(_encoded(Image.new("RGB", (1, 1), (9, 8, 7))), 16) == (9, 8, 7)).all()


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_hair_thin_picture_is_cropped_before_it_is_enlarged(size, monkeypatch):
    sizes, resize = [], Image.Image.resize

    def spy(self, size, *arguments, **options):
        sizes.append(size)
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    assert (_decoded(_encoded(Image.new("RGB", size, (9, 8, 7))), 64) == (9, 8, 7)).all()
    # Enlarged whole it would have 64 x 320,000 pixels, and a real one gigabytes.
    assert max(max(size) for size in sizes) <= 16 * 64


def test_a_decompression_bomb_is_a_bad_image(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(decode.BadImage, match="DecompressionBombError"):
        _decoded(_encoded(_noise()), 16)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "encoded", [b"", b"\0", b"no picture", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"GIF89a", b"\xff\xd8\xff\xe0"]
)
def test_what_is_no_picture_is_a_bad_image(encoded):
    with pytest.raises(decode.BadImage):
        _decoded(encoded, 16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "TGA", "PPM", "AVIF", "DDS"]
)
def test_damage_is_never_another_error(form):
    if form not in Image.registered_extensions().values():  # AVIF is left out of some builds
        pytest.skip(f"this Pillow has no {form}")
    good = _encoded(_noise(size=(32, 32)), form)
    rng = np.random.default_rng(0)
    bad = 0
    for trial in range(150):
        damaged = bytearray(good)
        if trial % 2:
            del damaged[int(rng.integers(0, len(good))) :]
        for position in rng.integers(0, max(1, min(len(damaged), 200)), 3 if trial % 3 else 0):
            if position < len(damaged):
                damaged[position] = int(rng.integers(0, 256))
        try:
            assert min(_decoded(bytes(damaged), 16).shape[:2]) == 16
        except decode.BadImage:
            bad += 1
    assert bad > 20


def test_truncated_is_bad_even_where_most_is_there():
    encoded = _encoded(_noise(size=(64, 64)), "JPEG")
    with pytest.raises(decode.BadImage, match="truncated"):
        _decoded(encoded[: len(encoded) * 3 // 4], 16)


def test_every_embedded_picture_decodes():
    for style in emoji_drawings.emoji_styles():
        source = sources.EmojiPairs([style])
        for index in range(0, len(source), 97):
            assert _decoded(source[index]["image"], 36).shape == (36, 36, 3)
