"""Parquet files: their rows, names and labels, also as Hugging Face's datasets library writes them."""

import io
import json
import pickle

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from big_ssl.data import chunks, pipeline, sources
from big_ssl.data.records import BadValue, values


def _png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _texts(record):
    """{key: its texts} of a record, all but the image."""
    return {key: values(record, key) for key in record if key != "image"}


@pytest.fixture
def parquet_folder(tmp_path):
    """Seven rows in two files, of row groups of two."""
    for name, rows in (("b", range(4, 7)), ("a", range(4))):
        columns = dict(
            image=[_png(20 * i) if i != 2 else None for i in rows],
            alt=[f"grey {i}" if i != 3 else None for i in rows],
            tags=[["x", "y"][: i % 3] for i in rows],
            width=list(rows),
        )
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet", row_group_size=2)
    return tmp_path


def test_rows_of_parquet_files_in_order(parquet_folder):
    opened = sources.ParquetPairs(str(parquet_folder))
    for source in (opened, pickle.loads(pickle.dumps(opened))):
        assert len(source) == 7
        for i in (6, 0, 5, 1, 4, 2, 3):  # across groups and files, backwards and forwards
            record = source[i]
            assert record["image"] == (_png(20 * i) if i != 2 else b"")
            assert _texts(record) == dict(
                alt=[f"grey {i}"] if i != 3 else [], tags=["x", "y"][: i % 3], width=[i]
            )
        assert source[-1] == source[6]
        with pytest.raises(IndexError):
            source[7]


def test_rows_are_named_by_file_and_row(parquet_folder):
    source = sources.ParquetPairs(str(parquet_folder))
    names = [source.record_name(i) for i in range(7)]
    assert names == [
        *(f"row {i} of a.parquet" for i in range(4)),
        *(f"row {i} of b.parquet" for i in range(3)),
    ]
    assert source.summary() == "7 of 7 rows in 2 Parquet files"


def test_one_parquet_file_and_some_of_its_columns(parquet_folder):
    source = sources.ParquetPairs(str(parquet_folder / "b.parquet"), text_keys=("alt",))
    assert [_texts(record) for record in source] == [dict(alt=[f"grey {i}"]) for i in (4, 5, 6)]


def test_a_share_of_the_rows_in_order(parquet_folder):
    every = sources.ParquetPairs(str(parquet_folder))
    parts = [sources.ParquetPairs(str(parquet_folder), share=share) for share in (0.3, 0.6)]
    numbers = [[_texts(record)["width"][0] for record in part] for part in parts]
    assert list(map(len, numbers)) == [2, 4]
    assert numbers[1] == sorted(numbers[1]) != list(range(4))
    assert set(numbers[0]) < set(numbers[1])
    assert [parts[1][i] for i in range(4)] == [every[i] for i in numbers[1]]
    with pytest.raises(IndexError):
        parts[0][2]
    with pytest.raises(ValueError, match="share is 0; it must lie in"):
        sources.ParquetPairs(str(parquet_folder), share=0)


def test_the_labels_of_parquet_columns(parquet_folder):
    """Of all files; a row without one has no class."""
    source = sources.ParquetPairs(str(parquet_folder))
    assert source.label_names("alt") == [f"grey {i}" for i in (0, 1, 2, 4, 5, 6)]
    assert source.label_names("width") == [str(i) for i in range(7)]
    labels = sources.labels(source, "alt")
    assert [labels.number(source[i]) for i in (0, 4, 6)] == [0, 3, 5]
    with pytest.raises(ValueError, match=r"^data: there is an image whose alt is None, which is no class"):
        labels.number(source[3])
    assert sources.labels(source, "width").number(source[5]) == 5
    with pytest.raises(
        ValueError, match=r"^parquet: 'tags' holds list<.*>; a label is a string or an integer"
    ):
        source.label_names("tags")
    with pytest.raises(ValueError, match=r"^parquet: 'alts' is none of the columns alt, tags, width"):
        source.label_names("alts")


def test_missing_parquet_files_and_columns_are_named(parquet_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"parquet: no file .*/none.parquet$"):
        sources.ParquetPairs(str(tmp_path / "none.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"parquet: no file .*/empty/\*.parquet$"):
        sources.ParquetPairs(str(tmp_path / "empty"))
    with pytest.raises(
        ValueError, match=r"a.parquet has no column 'alts'; there are image, alt, tags, width"
    ):
        sources.ParquetPairs(str(parquet_folder), text_keys=("alts",))


# As datasets writes them.


def _label(names):
    return dict(names=names, _type="ClassLabel")


def _write_hub(path, images, features=None, **columns):
    """A file as Dataset.to_parquet writes it. images: (bytes, path) of each row, or None."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [dict(zip(("bytes", "path"), image, strict=True)) if image else None for image in images]
    table = pyarrow.table(dict(image=pyarrow.array(rows, kind)) | columns)
    text = json.dumps(dict(info=dict(features=dict(image=dict(_type="Image")) | (features or {}))))
    pyarrow.parquet.write_table(table.replace_schema_metadata(dict(huggingface=text)), path)
    return str(path)


def test_images_with_their_paths(tmp_path):
    images = [(_png(0), "cats/a.png"), (_png(20), None), None, (None, None)]
    masks = [dict(bytes=_png(i), path=f"{i}.png") for i in range(4)]
    path = _write_hub(tmp_path / "train.parquet", images, text=["a", "b", "c", "d"], mask=masks)
    source = sources.ParquetPairs(path)
    assert [source[i]["image"] for i in range(4)] == [_png(0), _png(20), b"", b""]
    assert [source[i]["mask"] for i in range(4)] == [_png(i) for i in range(4)]
    assert [source.record_name(i) for i in range(2)] == [
        "row 0 of train.parquet (cats/a.png)",
        "row 1 of train.parquet",
    ]


def test_an_unreadable_image_is_named_by_its_path(tmp_path):
    path = _write_hub(tmp_path / "train.parquet", [(_png(0), "a.png"), (_png(0)[:40], "cats/b.png")])
    with pytest.raises(
        ValueError, match=r"^data: the image of row 1 of train.parquet \(cats/b.png\) can't be"
    ):
        chunks.load(sources.ParquetPairs(path), lambda record: 0, np.asarray, 1)


def test_a_row_that_cannot_be_read_has_a_name(tmp_path, monkeypatch):
    """It is the name in the message about that failure."""
    source = sources.ParquetPairs(_write_hub(tmp_path / "train.parquet", [(_png(0), "a.png")]))

    def fail(*arguments):
        raise ConnectionError

    monkeypatch.setattr("big_ssl.data.parquet._row_group", fail)
    assert source.record_name(0) == "row 0 of train.parquet"


def test_a_row_in_a_damaged_part_of_a_file_is_named(tmp_path):
    path = _write_hub(tmp_path / "train.parquet", [(_png(0), "a.png")])
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0)
    with open(path, "r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * 16)
    with pytest.raises(ValueError, match=r"^data: row 0 of train.parquet can't be read: .") as error:
        chunks.load(sources.ParquetPairs(path), lambda record: 0, np.asarray, 0)
    assert "\n" not in str(error.value)


def test_images_that_are_only_paths_are_one_line(tmp_path):
    source = sources.ParquetPairs(_write_hub(tmp_path / "a.parquet", [(None, "cats/x.png")]))
    line = "'image' has no bytes, only the path 'cats/x.png'; write the files with the images in them"
    with pytest.raises(BadValue, match=rf"^{line}$"):
        _ = source[0]
    with pytest.raises(ValueError, match=rf"^data: row 0 of a.parquet \(cats/x.png\) can't be read: {line}$"):
        chunks.load(source, lambda record: 0, np.asarray, 0)
    load = pipeline.LoadExample(source, {})
    with pytest.raises(pipeline.BadRecord, match=line):
        load.load(0, np.random.default_rng(0))


def test_class_names_are_those_of_the_schema(tmp_path):
    """In their order, also of classes that do not occur, of lists, and in the older spelling of these."""
    names = ["zebra", "ant", "cat"]
    features = dict(
        label=_label(names),
        several=dict(feature=_label(names), length=-1, _type="Sequence"),
        older=[_label(names)],
        count=dict(dtype="int64", _type="Value"),
    )
    columns = dict(label=[1, -1], several=[[0, 1], []], older=[[0], [1]], count=[3, 1])
    path = _write_hub(tmp_path / "a.parquet", [(_png(0), "a.png")] * 2, features, **columns)
    source = sources.ParquetPairs(path)
    for key in ("label", "several", "older"):
        assert source.label_names(key) == names
    assert source.label_names("count") == ["0", "1", "2", "3"]
    labels = sources.labels(source, "label")
    assert labels.number(source[0]) == 1
    with pytest.raises(BadValue, match="whose label is -1, which is no class"):  # unlabelled, for datasets
        labels.number(source[1])


def test_class_names_of_files_must_agree(tmp_path):
    for name, names in (("a", ["x", "y"]), ("b", ["y", "x"])):
        _write_hub(tmp_path / f"{name}.parquet", [(_png(0), "")], dict(label=_label(names)), label=[0])
    with pytest.raises(ValueError, match=r"^parquet: .*/b.parquet has other class names of 'label' than"):
        sources.ParquetPairs(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"info": []}', '{"info": {"features": {"label": []}}}'])
def test_damaged_metadata_are_one_line(tmp_path, text):
    table = pyarrow.table(dict(image=[_png(0)])).replace_schema_metadata(dict(huggingface=text))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"^parquet: the schema's metadata 'huggingface' of .*a.parquet is"):
        sources.ParquetPairs(str(tmp_path))


def test_a_column_without_images_is_one_line(tmp_path):
    columns = dict(image=["a.png"], struct=[dict(path="a.png")], label=pyarrow.array([None], "int64"))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for key, kind in (("image", "string"), ("struct", "struct<path: string>")):
        with pytest.raises(
            ValueError, match=rf"^parquet: '{key}' of .*/a.parquet holds {kind}; images are b"
        ):
            sources.ParquetPairs(str(tmp_path), key)


def test_a_label_without_values_is_one_line(tmp_path):
    columns = dict(image=[_png(0)], label=pyarrow.array([None], "int64"))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"^parquet: 'label' is empty in every row"):
        sources.ParquetPairs(str(tmp_path)).label_names("label")
