"""Parquet files as a source of records, also those that Hugging Face's datasets library writes."""

import bisect
import functools
import json
from collections.abc import Sequence

import pyarrow.compute
import pyarrow.parquet

from big_ssl import io
from big_ssl.data import decode
from big_ssl.data.records import IMAGE, BadValue, Record, part


class ParquetPairs(Sequence[Record]):
    """Parquet files: a column of encoded images, and columns of texts, one or a list per row.

    path: a file, or a folder of *.parquet in the order of their names; text_keys: the columns of
    texts, all but the image's if none is named; share: the fraction of the rows that is read,
    drawn at random, in order; a larger subset contains a smaller one. Few row groups stay in memory, so read
    a dataset with many of them in order, as curation does, and not shuffled. orientation, alpha: see
    decode.Options. Labels: columns with one text or integer per row.
    Of Hugging Face's datasets, a column of {bytes, path} gives the bytes, and a ClassLabel its names.
    Raises FileNotFoundError if there is no such file, ValueError for a column that a file lacks or that
    holds no images, and for an invalid share.
    """

    def __init__(
        self,
        path: str,
        image_key: str = "image",
        text_keys: Sequence[str] = (),
        share: float = 1.0,
        orientation: str = "",
        alpha: str = "",
    ):
        self.decode_options = decode.Options(orientation, alpha)
        place = io.as_path(path)
        files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
        if not files or not files[0].exists():
            raise FileNotFoundError(f"parquet: no file {path}" + "/*.parquet" * place.is_dir())
        self._image_key, self._text_keys = image_key, tuple(text_keys)
        self._groups, self._starts, self._class_names, self._has_paths = [], [0], {}, False
        for file in files:
            with _parquet(file) as parquet:
                metadata = parquet.metadata
            schema = metadata.schema.to_arrow_schema()
            self._text_keys = self._text_keys or tuple(name for name in schema.names if name != image_key)
            _check_columns(file, schema, image_key, self._text_keys)
            self._add_class_names(file, schema)
            self._has_paths = self._has_paths or pyarrow.types.is_struct(schema.field(image_key).type)
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._rows, self._files = part(self._starts[-1], share), len(files)

    def __len__(self):
        return len(self._rows)

    def summary(self) -> str:
        """How many rows are read, in how many files."""
        return f"{len(self):,} of {self._starts[-1]:,} rows in {self._files:,} Parquet files"

    def record_name(self, index: int) -> str:
        """The file of a record, its row, and the path of its image if the row has one."""
        position = int(self._rows[index])
        file = self._groups[self._group(position)][0]
        first = self._starts[[name for name, _ in self._groups].index(file)]
        path = self._path(position) if self._has_paths else None
        return f"row {position - first} of {file.name}" + (f" ({path})" if path else "")

    def __getitem__(self, index):
        row = self._row(int(self._rows[index]))
        image = row[self._image_key]
        if isinstance(image, dict) and image["bytes"] is None and image.get("path"):
            raise BadValue(
                f"{self._image_key!r} has no bytes, only the path {image['path']!r}; write the files with "
                "the images in them"
            )
        return {IMAGE: _encoded(image) or b""} | {key: _encoded(row[key]) for key in self._text_keys}

    def label_names(self, key: str) -> list[str]:
        """The names of a ClassLabel; of another column its distinct texts, sorted, or all integers from 0 to
        the largest that occurs."""
        if key not in self._text_keys:
            raise ValueError(f"parquet: {key!r} is none of the columns {', '.join(self._text_keys)}")
        if key in self._class_names:
            return self._class_names[key]
        values = set()
        for file in dict.fromkeys(file for file, _ in self._groups):
            with _parquet(file) as parquet:
                column = parquet.read(columns=[key])[key]
            if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_integer(column.type)):
                raise ValueError(f"parquet: {key!r} holds {column.type}; a label is a string or an integer")
            values |= set(pyarrow.compute.unique(column).to_pylist()) - {None}
        if not values:
            raise ValueError(f"parquet: {key!r} is empty in every row; a label is a string or an integer")
        names = sorted(values)
        return names if isinstance(names[0], str) else [str(i) for i in range(names[-1] + 1)]

    def _path(self, position):
        """The path of a row's image; None without one, or if the row can't be read."""
        try:
            image = self._row(position)[self._image_key]
        except Exception:  # a storage that fails, with its own exception, is what the name is for
            return None
        return image.get("path") if isinstance(image, dict) else None

    def _group(self, position):
        return bisect.bisect_right(self._starts, position) - 1

    def _row(self, position):
        """{column: value} of one row of all files."""
        group = self._group(position)
        table = _row_group(*self._groups[group], (self._image_key, *self._text_keys))
        (row,) = table.slice(position - self._starts[group], 1).to_pylist()
        return row

    def _add_class_names(self, file, schema):
        for key, names in _class_names(file, schema).items():
            if self._class_names.setdefault(key, names) != names:
                raise ValueError(f"parquet: {file} has other class names of {key!r} than the files before it")


@functools.lru_cache(4)  # of the module and not of a source, which workers must be able to pickle
def _row_group(file, number, columns):
    with _parquet(file) as parquet:
        return parquet.read_row_group(number, columns=list(columns))


def _parquet(file):
    """A parquet file, opened by epath in a bucket: pyarrow's own clients take other settings."""
    return pyarrow.parquet.ParquetFile(file.open("rb") if io.is_remote(file) else file)


def _check_columns(file, schema, image_key, text_keys):
    for key in (image_key, *text_keys):
        if key not in schema.names:
            raise ValueError(f"parquet: {file} has no column {key!r}; there are {', '.join(schema.names)}")
    kind = schema.field(image_key).type
    types = pyarrow.types
    data = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null)
    if not any(check(data) for check in checks):
        raise ValueError(
            f"parquet: {image_key!r} of {file} holds {kind}; images are binary, or a struct of bytes and path"
        )


def _class_names(file, schema):
    """{column: names} of the ClassLabels, and lists of them, that datasets notes in a schema's metadata."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text).get("info", {}).get("features", {})
        inner = {key: _inner(feature) for key, feature in features.items()}
    except (ValueError, AttributeError, LookupError) as error:
        raise ValueError(f"parquet: the schema's metadata 'huggingface' of {file} is damaged") from error
    labels = {key: f for key, f in inner.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}
    return {key: list(feature["names"]) for key, feature in labels.items() if feature.get("names")}


def _inner(feature):
    """The feature inside a list, in the spellings of datasets 1 to 4."""
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return feature


def _encoded(value):
    """The bytes of a {bytes, path}; other values unchanged."""
    return value["bytes"] if isinstance(value, dict) and "bytes" in value else value
