"""Images of other than three channels: read as they are stored, and resized channel by channel."""

import io

import numpy as np
import pytest
from PIL import Image

from big_ssl.data import bands, chunks, decode, fields, preprocessing, sources
from big_ssl.evals import model_inputs

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
CROP = dict(kind="random_resized_crop", size=16, scale=(0.4, 1.0), count=2)
PIXEL = dict(mean=(0.5,), std=(0.5,))


def png(pixels, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def npy(pixels):
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def two_pages():
    buffer = io.BytesIO()
    page = Image.fromarray(PIXELS[..., 0])
    page.save(buffer, "TIFF", save_all=True, append_images=[page])
    return buffer.getvalue()


def decoded(encoded, channels):
    return decode.decode_channels(encoded, np.asarray, channels=channels)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (png(PIXELS), PIXELS),  # transparent colours are not lost
        (png(PIXELS[..., 0]), PIXELS[..., :1]),
        (png(PIXELS[..., 0].astype(np.uint16) * 257), PIXELS[..., :1]),
        (npy(PIXELS[..., :2]), PIXELS[..., :2]),
        (npy(np.tile(PIXELS, (1, 1, 3))), np.tile(PIXELS, (1, 1, 3))),
        (npy(PIXELS[..., :3]), PIXELS[..., :3]),
    ],
)
def test_channels_are_read_as_they_are_stored(encoded, expected):
    np.testing.assert_array_equal(decoded(encoded, expected.shape[-1]), expected)


def test_one_channel_of_colours_is_their_grey():
    grey = np.asarray(Image.fromarray(PIXELS[..., :3]).convert("L"))
    np.testing.assert_array_equal(decoded(png(PIXELS[..., :3]), 1)[..., 0], grey)


def test_three_channels_are_rgb_as_ever():
    expected = decode.decode_rgb(png(PIXELS), np.asarray)
    np.testing.assert_array_equal(decoded(png(PIXELS), 3), expected)


@pytest.mark.parametrize(
    ("encoded", "channels", "message"),
    [
        (png(PIXELS[..., :3]), 4, "it has 3 channels, RGB; it must have 4"),
        (npy(PIXELS), 5, r"it is uint8\[30, 40, 4\]; it must be uint8\[H, W, 5\]"),
        (npy(PIXELS.astype(np.float32)), 4, r"it is float32\[30, 40, 4\]; it must be uint8"),
        (npy(PIXELS)[:200], 4, "ValueError"),
        (two_pages(), 1, "it has 2 frames; an image of 1 channels has one"),
        (npy(np.array([None], object)), 4, "Object arrays"),
    ],
)
def test_other_channels_are_refused(encoded, channels, message):
    with pytest.raises(decode.BadImage, match=message) as caught:
        decoded(encoded, channels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["crop", "crop 20", "stretch 20 bilinear"])
def test_each_channel_is_resized_alone(how):
    rgb = [preprocessing.resize(np.repeat(PIXELS[None, ..., i : i + 1], 3, -1), 16, how) for i in range(4)]
    found = preprocessing.resize(PIXELS[None], 16, how)
    np.testing.assert_array_equal(found, np.concatenate([x[..., :1] for x in rgb], -1))


def test_evaluation_reads_as_many_channels_as_the_model_has():
    prepare = chunks.prepared(lambda images: preprocessing.resize(images, 16, "crop"))
    (image, label) = chunks.load([dict(image=png(PIXELS), label=3)], lambda r: r["label"], prepare, 0, 4)
    assert (image.shape, label) == ((16, 16, 4), 3)


def test_an_image_field_of_four_channels():
    image = fields.build({"image": dict(kind="image", crop=CROP, channels=4, **PIXEL)}, 0)["image"]
    assert image.zeros().shape == (2, 16, 16, 4)
    prepared = decode.decode_channels(png(PIXELS), image.cropper.prepare, channels=4)
    rng = np.random.default_rng(0)
    crops = image.cropper.render(prepared, image.cropper.draw(prepared, rng))
    assert (crops.shape, crops.dtype) == ((2, 16, 16, 4), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(channels=4, jitter=(0.4, 0.4, 0.2, 0.1)), "channels is 4; jitter and grayscale_prob are for 3"),
        (dict(channels=4, mean=(0.4, 0.5, 0.6)), "mean is .0.4, 0.5, 0.6.; it must have one value or 4"),
        (dict(channels=1, std=(0.4, 0.5, 0.6)), "std is .0.4, 0.5, 0.6.; it must have one value or 1"),
        (dict(channels=4, key="image"), "fields.other.channels is 3; another field of 'image' has 4"),
    ],
)
def test_options_that_do_not_fit(changes, message):
    image = dict(kind="image", crop=CROP, **PIXEL)
    with pytest.raises(ValueError, match=message):
        fields.build({"image": image | changes, "other": image}, 0)


def test_pictures_show_the_first_three_channels():
    np.testing.assert_array_equal(bands.visible(PIXELS), PIXELS[..., :3])
    np.testing.assert_array_equal(bands.visible(PIXELS[..., :2]), np.repeat(PIXELS[..., :1], 3, -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("white_is", [0, 1])
def test_an_opened_image_has_the_pixels_of_its_file(channels, white_is, tmp_path):
    """16 bits of grey, also with white as 0, which the tags of a TIFF tell."""
    grey = np.arange(0, 65536, 256, np.uint16).reshape(16, 16)
    tags = {262: 0} if white_is == 0 else {}
    Image.fromarray(grey).save(tmp_path / "grey.tif", tiffinfo=tags)
    image = Image.open(tmp_path / "grey.tif")
    found = model_inputs.image_batch([image], None, channels)
    np.testing.assert_array_equal(found, model_inputs.image_batch(tmp_path / "grey.tif", None, channels))
    np.testing.assert_array_equal(np.asarray(image), grey)
    assert abs(int(found[0, -1, -1, 0]) - (0 if white_is == 0 else 255)) <= 1


def test_a_transparent_image_is_left_as_it_was():
    image = Image.fromarray(PIXELS[..., 0]).convert("P")
    image.info["transparency"] = 0
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    opened = Image.open(buffer)
    decode.pillow_pixels(opened)
    assert opened.info["transparency"] == 0


@pytest.mark.parametrize(("suffixes", "count"), [(".npy", 3), ((".NPY",), 3), ((".npy", ".raw"), 4), ((), 1)])
def test_files_with_other_suffixes(suffixes, count, tmp_path):
    for name in ("a.npy", "b.NPY", "c.raw", "d.png"):
        (tmp_path / name).write_bytes(b"")
    assert len(sources.ImageFolder(str(tmp_path), suffixes=suffixes)) == count


def test_a_suffix_without_a_dot(tmp_path):
    with pytest.raises(ValueError, match=r"suffixes has .npy.; it must begin with a dot, like \.npy"):
        sources.ImageFolder(str(tmp_path), suffixes=("npy",))
