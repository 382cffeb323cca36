"""The data of a run, opened and read from before anything slow: one line for what is wrong with it."""

import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from big_ssl import retry
from big_ssl.data import sources
from big_ssl.training import build, streams
from big_ssl.training.requirements import RequirementsError


def _pictures(folder, count):
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i:02}.png")
    return folder


def _parquet(path, count, image=None):
    buffer = pathlib.Path(_pictures(path.parent / "one", 1) / "00.png").read_bytes()
    columns = dict(image=[image or buffer] * count, text=["a red apple"] * count)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture
def open_with(micro_config):
    """open_with(source=..., **data) opens the streams of the micro recipe with that source."""

    def opened(captions=None, **source):
        config = micro_config()
        data = config["streams"]["pairs"]["data"]
        data.update(source=source)
        data["fields"]["text"].update(captions=captions or {"text": 1.0})
        return streams.open_streams(config, build.tokenizer(config))

    return opened


def test_what_there_is_is_printed(open_with, tmp_path, capsys):
    loaders = open_with(kind="parquet", path=str(_parquet(tmp_path / "a.parquet", 20)))
    assert capsys.readouterr().out == "streams.pairs: 20 of 20 rows in 1 Parquet files\n"
    assert loaders["pairs"][0].records == 20


def _broken(folder):
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.jpg").write_text("no picture")
    return folder


@pytest.mark.parametrize(
    ("make", "source", "message"),
    [
        (lambda path: path, dict(kind="image_folder"), r"data.source: .*No such file or directory: '.*/x'$"),
        (pathlib.Path.mkdir, dict(kind="image_folder"), r"data.source: image_folder: .*/x has no pictures$"),
        (lambda path: path, dict(kind="parquet"), r"data.source: parquet: no file .*/x$"),
        (
            lambda path: _parquet(path, 20),
            dict(kind="parquet", image_key="img"),
            "data.source: parquet: .*/x has no column 'img'; there are image, text$",
        ),
        (
            lambda path: _parquet(path, 20, b"no picture"),
            dict(kind="parquet"),
            r"data.source: none of 8 records from first to last can be used, such as row 0 of x: U",
        ),
        (lambda path: _parquet(path, 0), dict(kind="parquet"), "data.source: it has no records$"),
        (
            lambda path: path.write_bytes(b"PAR1 and no more"),
            dict(kind="parquet"),
            r"data.source: Parquet magic bytes not found",
        ),
    ],
)
def test_a_source_that_will_not_do_is_one_line(make, source, message, open_with, tmp_path):
    make(tmp_path / "x")
    with pytest.raises(RequirementsError, match=rf"^streams\.pairs\.{message}") as error:
        open_with(path=str(tmp_path / "x"), **source)
    assert len(str(error.value).splitlines()) == 1


def test_captions_that_no_record_has_are_named(open_with, tmp_path):
    path = str(_parquet(tmp_path / "a.parquet", 20))
    with pytest.raises(
        RequirementsError, match=r"fields.text.captions: the records have no 'alt'; there are image, text$"
    ):
        open_with({"alt": 1.0}, kind="parquet", path=path)


def test_a_few_bad_records_are_no_reason_not_to_begin(open_with, tmp_path):
    path = _parquet(tmp_path / "a.parquet", 20)
    table = pyarrow.parquet.read_table(path).to_pydict()
    table["image"][0] = b"no picture"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    assert len(open_with(kind="parquet", path=str(path))["pairs"]) == 1


def test_a_record_that_cannot_be_read_is_named(open_with, tmp_path, monkeypatch):
    """Of the first file to the last, so that a shard that is gone is found."""
    path = str(_parquet(tmp_path / "a.parquet", 20))

    def read(self, index):
        if index == 19:
            raise RuntimeError("open() failed: No such file or directory")
        return original(self, index)

    original = sources.ParquetPairs.__getitem__
    monkeypatch.setattr(sources.ParquetPairs, "__getitem__", read)
    monkeypatch.setattr(retry, "sleep", lambda seconds: None)
    with pytest.raises(RequirementsError, match=r"row 19 of a.parquet can't be read: RuntimeError: open"):
        open_with(kind="parquet", path=path)
