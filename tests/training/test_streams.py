"""The data of a run, opened and read from before anything slow: one line for what is wrong with it."""

import dataclasses
import pathlib
import re
from typing import ClassVar

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from big_ssl import retry
from big_ssl.config import ConfigError, validate
from big_ssl.data import fields, sources
from big_ssl.data.fields.base import Field, required
from big_ssl.data.records import BadValue
from big_ssl.objectives import build as objectives
from big_ssl.objectives.base import BatchField
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import batches, build, streams
from big_ssl.training.requirements import RequirementsError
from tests.training.toys import Toy


@dataclasses.dataclass(frozen=True)
class _Reads(Toy):
    """An objective that reads one field of the batch."""

    scope: str = "example"
    field: str = ""

    @property
    def inputs(self):
        return {self.field: BatchField(self.field)}


@dataclasses.dataclass(frozen=True)
class Age(Field):
    """float32[]: a record's age in years. key: where a record has it. As in CONTRIBUTING.md."""

    key: str = "age"

    counter: ClassVar[str] = "replaced_ages"

    def zeros(self):
        return np.float32(0)

    def load(self, record, draws):
        value = required(record.get(self.key), self.key)
        if not 0 <= value < 150:
            raise BadValue(f"{self.key!r} is {value}")
        return np.float32(value)


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
        (pathlib.Path.mkdir, dict(kind="image_folder"), r"data.source: image_folder: .*/x has no images$"),
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


# Mixtures of sources.


def _entry(tmp_path, name, column, weight, **fields):
    """A source of 20 images with a text in this column, as an entry of a mixture."""
    path = tmp_path / name
    path.mkdir()
    file = _parquet(path / "a.parquet", 20)
    table = pyarrow.parquet.read_table(file).rename_columns(["image", column])
    pyarrow.parquet.write_table(table, file)
    return dict(source=dict(kind="parquet", path=str(file)), weight=weight, fields=fields)


@pytest.fixture
def open_mixture(micro_config):
    """open_mixture(*entries) -> (config, parts) of the micro recipe that reads these sources."""

    def opened(*entries, **fields):
        config = micro_config()
        data = config["streams"]["pairs"]["data"]
        del data["source"]
        data.update(sources=entries)
        data["fields"]["text"].update(captions=dict(alt=1.0))
        data["fields"].update(fields)
        validate(config)
        return config, streams.open_streams(config, build.tokenizer(config))

    return opened


def test_sources_of_a_mixture_have_captions_of_their_own(open_mixture, tmp_path, capsys):
    named = _entry(tmp_path, "a", "title", 3.0, text=dict(captions=dict(title=1.0)))
    config, parts = open_mixture(named, _entry(tmp_path, "b", "alt", 1.0))
    told = capsys.readouterr().out
    assert told == "streams.pairs: 20 of 20 rows in 1 Parquet files + 20 of 20 rows in 1 Parquet files\n"
    assert [part.weight for part in parts["pairs"]] == [3.0, 1.0]
    mesh = make_mesh(config["mesh"], jax.devices()[:1])
    iterator = batches.iterate(config, parts, 3, mesh)
    batch = next(iterator)
    iterator.close()
    abstract = batches.abstract_global_batch(config, None)
    jax.tree.map(
        lambda x, y: np.testing.assert_equal((x.shape, x.dtype), (y.shape, y.dtype)), batch, abstract
    )
    assert not any(marks.any() for marks in batch["pairs"]["data_errors"].values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"data.sources.1.fields.text.captions: the records have no 'alt'; there are image, title$"),
        (
            dict(text=dict(captions=dict(title=1.0)), image=dict(flip=True)),
            "data.sources.1.fields.image: it may change what is read, not what the batch holds$",
        ),
        (
            dict(
                text=dict(captions=dict(title=1.0)),
                image=dict(crop=dict(kind="random_crop", resize=9, size=9)),
            ),
            "data.sources.1.fields.image: it may change what is read, not what the batch holds$",
        ),
    ],
)
def test_what_one_source_of_a_mixture_lacks_is_named_at_start(fields, message, open_mixture, tmp_path):
    second = _entry(tmp_path, "b", "title", 1.0, **fields)
    with pytest.raises(RequirementsError, match=rf"^streams\.pairs\.{message}"):
        open_mixture(_entry(tmp_path, "a", "alt", 1.0), second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(weight=0.0), "sources.0.weight is 0.0; it must be above 0"),
        (dict(fields=dict(txt={})), "sources.0.fields.txt is no known key; did you mean text?"),
        (
            dict(source=dict(kind="parket")),
            "sources.0.source.kind: 'parket' is unknown; did you mean parquet?",
        ),
        (
            dict(fields=dict(text=dict(caption={}))),
            "sources.0.fields.text.caption is no known key; did you mean",
        ),
    ],
)
def test_a_mixture_that_can_not_be_is_named(changes, message, open_mixture, tmp_path):
    with pytest.raises(ConfigError, match=rf"^streams.pairs.data.{re.escape(message)}"):
        open_mixture(_entry(tmp_path, "a", "alt", 1.0) | changes)


def test_a_key_that_no_record_has_is_named(micro_config, tmp_path, monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "reads_boxes", lambda *, context: _Reads(field="boxes"))
    config = micro_config()
    data = config["streams"]["pairs"]["data"]
    data.update(source=dict(kind="parquet", path=str(_parquet(tmp_path / "a.parquet", 20))))
    data["fields"]["text"].update(captions=dict(text=1.0))
    data["fields"]["boxes"] = dict(kind="boxes", image="image", key="bbox", class_key="ids")
    config["streams"]["pairs"]["objectives"]["extra"] = dict(kind="reads_boxes", weight=1.0)
    with pytest.raises(
        RequirementsError, match=r"data.fields.boxes.key: the records have no 'bbox'; there are image, text$"
    ):
        streams.open_streams(config, build.tokenizer(config))


def test_a_new_kind_of_field_is_a_class_and_a_line_of_the_table(micro_config, tmp_path, monkeypatch):
    monkeypatch.setitem(fields.KINDS, "age", Age)
    monkeypatch.setitem(objectives.OBJECTIVES, "reads_age", lambda *, context: _Reads(field="age"))
    file = _parquet(tmp_path / "a.parquet", 20)
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.append_column("age", [[*range(19), 200]]), file)
    config = micro_config()
    stream = config["streams"]["pairs"]
    stream["data"].update(source=dict(kind="parquet", path=str(file)))
    stream["data"]["fields"] = dict(age=dict(kind="age"))
    stream["objectives"] = dict(age=dict(kind="reads_age", weight=1.0))
    validate(config)
    parts = streams.open_streams(config, None)
    iterator = batches.iterate(config, parts, 0, make_mesh(config["mesh"], jax.devices()[:1]))
    pairs = [next(iterator)["pairs"] for _ in range(5)]
    iterator.close()
    ages = np.concatenate([batch["age"] for batch in pairs])
    # Each once an epoch, and the first for the last, which is none.
    np.testing.assert_array_equal(np.bincount(ages.astype(int)), [8, *[4] * 18])
    assert sum(batch["data_errors"]["replaced_ages"].sum() for batch in pairs) == 4
    assert set(parts["pairs"][0].load.fields) == {"age"}
    stream["data"]["fields"]["age"].update(kye="age")
    with pytest.raises(
        ConfigError, match=r"^streams.pairs.data.fields.age.kye is no known key; did you mean"
    ):
        validate(config)
