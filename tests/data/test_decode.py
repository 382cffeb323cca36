"""Decoding: what pictures become, and that what can't be decoded says so and no more."""

import io
import pathlib
import struct

import numpy as np
import pytest
from PIL import Image

import big_ssl
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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBA", "LA"])
def test_every_mode_is_as_if_laid_over_white(mode):
    """Also what has no transparency, and is not laid over anything."""
    image = _noise().convert(mode)
    over = Image.new("RGBA", image.size, "white")
    over.alpha_composite(image.convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(decode._rgb(image, "white")), np.asarray(over.convert("RGB")))


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


def test_images_are_opened_in_one_place():
    """Curation reads the sizes in their headers, and no pixels."""
    package = pathlib.Path(big_ssl.__file__).parent
    files = [path for path in package.rglob("*.py") if "Image.open(" in path.read_text()]
    assert {str(path.relative_to(package)) for path in files} == {"data/decode.py", "curation/records.py"}


# Depths beyond eight bits.

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(48, 0)


def _twelve_bits(values):
    """A row of grey as TIFF of 12 bits, which Pillow reads and can't write. values: an even number."""
    bits = "".join(f"{value:012b}" for value in values)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = {256: len(values), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        struct.pack("<4sI", b"II*", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


@pytest.mark.parametrize(
    ("array", "form", "options"),
    [
        (RAMP, "PNG", {}),
        (RAMP, "TIFF", {}),
        (RAMP, "TIFF", dict(compression="tiff_deflate")),
        (RAMP.astype(">u2"), "TIFF", {}),
        (RAMP.astype(np.int32), "TIFF", {}),
        (RAMP.astype(np.int32), "PPM", {}),
        (RAMP, "JPEG2000", {}),
    ],
)
def test_sixteen_bits_are_scaled_by_their_range(array, form, options):
    found = decode.decode_rgb(_encoded(Image.fromarray(array), form, **options), np.asarray)
    np.testing.assert_array_equal(found, (RAMP / 257).round().astype(np.uint8)[..., None].repeat(3, -1))


def test_white_is_zero_in_sixteen_bits():
    encoded = _encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
    found = decode.decode_rgb(encoded, np.asarray)[..., 0]
    np.testing.assert_array_equal(found, 255 - (RAMP / 257).round())


def test_twelve_bits_have_a_range_of_their_own():
    found = decode.decode_rgb(_twelve_bits([0, 1000, 4095, 2048]), np.asarray)
    np.testing.assert_array_equal(found[0, :, 0], [0, 62, 255, 128])


def test_a_transparent_grey_of_sixteen_bits():
    encoded = _encoded(Image.fromarray(RAMP), transparency=int(RAMP[0, 5]))
    scaled = (RAMP[0] / 257).round()
    dropped = decode.decode_rgb(encoded, np.asarray, decode.Options("stored", "drop"))
    np.testing.assert_array_equal(dropped[0, :, 0], scaled)
    scaled[5] = 255
    np.testing.assert_array_equal(decode.decode_rgb(encoded, np.asarray)[0, :, 0], scaled)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RAMP / np.float32(65535), "it has floats, whose range is unknown; save it with 8 or 16 bits"),
        (
            RAMP.astype(np.int32) + 1,
            "it has 32-bit integers from 1 to 65536, whose range is unknown; save it",
        ),
        (
            RAMP.astype(np.int32) - 7,
            "it has 32-bit integers from -7 to 65528, whose range is unknown; save it",
        ),
    ],
)
def test_a_depth_of_unknown_range_is_refused(array, message):
    encoded = _encoded(Image.fromarray(array), "TIFF")
    with pytest.raises(decode.BadImage, match=f"^{message}"):
        decode.decode_rgb(encoded, np.asarray)
    np.testing.assert_array_equal(decode.decode_array(encoded), array)


# Orientation, transparency and palettes.


def _turned(form, orientation, image=None):
    """An encoded image with an orientation in its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = image or Image.fromarray(
        np.kron(np.arange(12).reshape(3, 4) * 20, np.ones((8, 8))).astype(np.uint8)
    )
    return image, _encoded(image, form, exif=exif)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_training_turns_an_image_upright_and_evaluation_does_not(form, orientation):
    """The cases are the standard's; 0 and 9 are in none, and turn nothing."""
    image, encoded = _turned(form, orientation)
    stored = np.asarray(image)
    upright = {
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored.T[:, ::-1],
        7: stored.T[::-1, ::-1],
        8: stored.T[::-1],
    }.get(orientation, stored)
    for options, expected in ((decode.TRAINING, upright), (decode.EVALUATION, stored)):
        found = decode.decode_rgb(encoded, np.asarray, options)[..., 0]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=8)  # JPEG and WebP are lossy
    np.testing.assert_array_equal(decode.decode_array(_turned("PNG", orientation)[1]), upright)


def test_pillow_turns_tiff_upright_by_itself():
    _, encoded = _turned("TIFF", 6)
    for options in (decode.TRAINING, decode.EVALUATION):
        assert decode.decode_rgb(encoded, np.asarray, options).shape == (32, 24, 3)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the damage
@pytest.mark.parametrize("end", range(10, 60, 6))
def test_damaged_metadata_leave_the_pixels(end):
    image = _noise(size=(16, 16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description that is cut off"
    encoded = _encoded(image, exif=exif.tobytes()[:end])
    found = decode.decode_rgb(encoded, np.asarray)
    expected = np.asarray(image)
    assert (found == expected).all() or (found == expected.transpose(1, 0, 2)[:, ::-1]).all()


def test_alpha_is_dropped_on_request():
    image = _noise("RGBA")
    found = decode.decode_rgb(_encoded(image), np.asarray, decode.Options("stored", "drop"))
    np.testing.assert_array_equal(found, np.asarray(image)[..., :3])


def test_a_palette_with_an_alpha_for_each_entry():
    image = Image.fromarray(np.arange(3, dtype=np.uint8)[None], "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    encoded = _encoded(image, transparency=bytes([255, 51, 0]))
    found = decode.decode_rgb(encoded, np.asarray)
    np.testing.assert_array_equal(found[0], [(200, 0, 0), (204, 244, 204), (255, 255, 255)])
    dropped = decode.decode_rgb(encoded, np.asarray, decode.Options("stored", "drop"))
    np.testing.assert_array_equal(dropped[0], [(200, 0, 0), (0, 200, 0), (0, 0, 200)])


def test_a_palette_beside_an_alpha_channel():
    pixels = np.stack([[[0, 1, 2]], [[255, 51, 0]]], -1).astype(np.uint8)
    image = Image.frombytes("PA", (3, 1), pixels.tobytes())
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    found = decode.decode_rgb(_encoded(image, "TIFF"), np.asarray)
    np.testing.assert_array_equal(found[0], [(200, 0, 0), (204, 244, 204), (255, 255, 255)])


def test_options_of_decoding_are_checked():
    with pytest.raises(ValueError, match=r"^orientation is 'up'; use exif or stored$"):
        decode.Options("up")
    with pytest.raises(ValueError, match=r"^alpha is 'black'; use white or drop$"):
        decode.Options(alpha="black")
    assert decode.Options(alpha="drop").or_else(decode.EVALUATION) == decode.Options("stored", "drop")


@pytest.mark.parametrize(
    ("encoded", "message"), [(b"", "the file is empty"), (b"no image", "in no format that Pillow reads")]
)
def test_a_message_has_no_address_in_memory(encoded, message):
    with pytest.raises(decode.BadImage, match=f"^UnidentifiedImageError: {message}$"):
        decode.decode_rgb(encoded, np.asarray)
