"""Whole sets of pictures, decoded in parallel: their order, their ends, and what is left out."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from big_ssl import retry
from big_ssl.data import chunks, sources


def _record(value):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(buffer, "PNG")
    return dict(image=buffer.getvalue(), label=value)


def _label(record):
    return record["label"]


def _corner(images):
    return images[:, :2, :2]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_every_picture_comes_once_and_in_order(count, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4)
    found = list(chunks.chunks([_record(i) for i in range(count)], _label, _corner))
    assert [len(labels) for _, labels in found] == [4] * (count // 4) + [count % 4] * bool(count % 4)
    images = np.concatenate([images for images, _ in found])
    assert images.shape == (count, 2, 2, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(count))
    assert [label for _, labels in found for label in labels] == list(range(count))


def test_what_is_left_out_is_not_decoded(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 4)
    records = [_record(i) if i % 8 < 3 else dict(image=b"no picture", label=None) for i in range(16)]
    found = list(chunks.chunks(records, _label, _corner))
    assert [labels for _, labels in found] == [[0, 1, 2], [8, 9, 10]]
    np.testing.assert_array_equal(found[1][0][:, 0, 0, 0], [8, 9, 10])


def test_a_picture_that_cannot_be_decoded_is_an_error_that_names_it():
    records = [_record(i) for i in range(7)]
    records[5] = records[5] | dict(image=records[5]["image"][:30])
    with pytest.raises(ValueError, match="data: the image of record 5 can't be decoded: ") as caught:
        list(chunks.chunks(records, _label, _corner))
    assert "\n" not in str(caught.value)


def test_an_unreadable_image_of_a_folder_is_named_by_its_path(tmp_path):
    for place, data in (("cat/a.png", _record(0)["image"]), ("dog/broken.jpg", b"")):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(data)
    source = sources.ImageFolder(str(tmp_path))
    line = f"^data: the image of {tmp_path}/dog/broken.jpg can't be decoded: U.*Error: the file is empty"
    with pytest.raises(ValueError, match=line):
        list(chunks.chunks(source, _label, _corner))


def test_a_file_that_is_gone_is_named_by_its_path(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    source = sources.ImageFolder(str(tmp_path))
    with pytest.raises(ValueError, match=rf"^data: {tmp_path}/a.png can't be read: .*No such file"):
        list(chunks.chunks(source, _label, _corner))


@pytest.mark.parametrize(("options", "size"), [({}, (6, 5)), (dict(orientation="exif"), (5, 6))])
def test_evaluation_ignores_the_orientation_unless_its_source_heeds_it(tmp_path, options, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 5)).save(tmp_path / "a.jpg", exif=exif)
    source = sources.ImageFolder(str(tmp_path), **options)
    assert chunks.load(source, lambda record: 0, lambda image: image.size, 0) == (size, 0)


@pytest.mark.parametrize(("options", "value"), [({}, 255), (dict(alpha="drop"), 9)])
def test_alpha_lies_over_white_unless_its_source_drops_it(tmp_path, options, value):
    Image.new("RGBA", (6, 5), (9, 9, 9, 0)).save(tmp_path / "a.png")
    source = sources.ImageFolder(str(tmp_path), **options)
    assert chunks.load(source, lambda record: 0, lambda image: image.getpixel((0, 0)), 0)[0] == (value,) * 3


def test_only_a_chunk_is_decoded_ahead_and_no_thread_stays(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 2)
    read = []
    before = threading.active_count()
    found = chunks.chunks([_record(i) for i in range(10)], lambda r: read.append(1) or _label(r), _corner)
    next(found)
    found.close()  # waits for what was begun
    assert len(read) == 4
    assert threading.active_count() == before


class _LateSource(list):
    """Does not answer at first."""

    def __init__(self, records):
        super().__init__(records)
        self.errors = [ConnectionResetError()]

    def __getitem__(self, index):
        if self.errors:
            raise self.errors.pop()
        return super().__getitem__(index)


def test_a_storage_that_answers_late_costs_no_evaluation(monkeypatch):
    monkeypatch.setattr(retry, "sleep", lambda _: None)
    source = _LateSource(_record(i) for i in range(3))
    ((_, labels),) = chunks.chunks(source, _label, _corner)
    assert labels == [0, 1, 2]
    assert not source.errors
