"""Sources of records: random access, nothing decoded.

An item is a Record, {key: raw value}, or a list of records of the same concept, of which one is drawn each
time.
"""

import bisect
import collections
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NewType

import numpy as np
import pyarrow.compute
import pyarrow.parquet
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl import io
from big_ssl.data.emoji_drawings import EmojiConcepts, EmojiPairs
from big_ssl.data.records import IMAGE, Labels, Record, part

# A source in a config: `kind`, a name in SOURCES, and that source's options.
SourceConfig = NewType("SourceConfig", Mapping)

_IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".tif", ".tiff"))


class TfdsPairs(Sequence[Record]):
    """A TFDS dataset prepared in a random-access format (array_record), read without TensorFlow.

    name, split, data_dir: as for tfds.data_source; image_key, text_keys: its feature names, nested
    ones as "captions/text"; without text_keys, all keys of the records. Labels: its
    class labels. Raises FileNotFoundError if data_dir has no such dataset.
    """

    def __init__(
        self, name: str, split: str, data_dir: str, image_key: str = "image", text_keys: Sequence[str] = ()
    ):
        import tensorflow_datasets as tfds  # slow to import, and needed only here

        if str(io.as_path(data_dir)).startswith("s3://"):
            raise ValueError(f"data: {data_dir}: array_record is read from disks and gs:// alone")
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.registered.DatasetNotFoundError as error:
            raise FileNotFoundError(f"data: no TFDS dataset {name!r} in {data_dir!r}") from error
        self._features, self._name = _flat_features(builder.info.features), name
        # Every image stays encoded: masks and depths are images as well.
        images = [key for key, f in self._features.items() if isinstance(f, tfds.features.Image)]
        decoders = unflatten_dict(dict.fromkeys({*images, image_key}, tfds.decode.SkipDecoding()), sep="/")
        self._source = builder.as_data_source(split=split, decoders=decoders)
        self._image_key, self._text_keys = image_key, tuple(text_keys)
        self._shards = builder.info.splits[split].file_instructions
        self._starts = np.cumsum([0, *(shard.take for shard in self._shards)])

    def __len__(self):
        return len(self._source)

    def summary(self) -> str:
        """How many records there are, in how many files."""
        return f"{len(self):,} records of {self._name!r} in {len(self._shards):,} files"

    def record_name(self, index: int) -> str:
        """The file of a record, and its index there."""
        shard = bisect.bisect_right(self._starts, index) - 1
        place = index - self._starts[shard] + self._shards[shard].skip
        return f"record {place} of {io.as_path(self._shards[shard].filename).name}"

    def __getitem__(self, index):
        values = flatten_dict(self._source[index], sep="/")
        keys = self._text_keys or [key for key in values if key != self._image_key]
        return {IMAGE: values[self._image_key]} | {key: values[key] for key in keys}

    def label_names(self, key: str) -> list[str]:
        """The classes of a class label, in the order of its numbers."""
        names = {k: feature.names for k, feature in self._features.items() if hasattr(feature, "names")}
        if key not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"tfds: {key!r} of {self._name!r} is no class label; there is {known}")
        return names[key]


class ParquetPairs(Sequence[Record]):
    """Parquet files: a column of encoded images, and columns of texts, one or a list per row.

    path: a file, or a folder of *.parquet in the order of their names; text_keys: the columns of
    texts, all but the image's if none is named; share: the fraction of the rows that is read,
    drawn at random, in order; a larger subset contains a smaller one. Few row groups stay in memory, so read
    a dataset with many of them in order, as curation does, and not shuffled. Labels: columns with one text or
    integer per row.
    Raises FileNotFoundError if there is no such file, ValueError for a column that a file lacks, and
    for an invalid share.
    """

    def __init__(
        self, path: str, image_key: str = "image", text_keys: Sequence[str] = (), share: float = 1.0
    ):
        place = io.as_path(path)
        files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
        if not files or not files[0].exists():
            raise FileNotFoundError(f"parquet: no file {path}" + "/*.parquet" * place.is_dir())
        self._image_key, self._text_keys = image_key, tuple(text_keys)
        self._groups, self._starts = [], [0]
        for file in files:
            with _parquet(file) as parquet:
                metadata = parquet.metadata
            self._text_keys = self._text_keys or _other_columns(metadata, image_key)
            _check_columns(file, metadata, (image_key, *self._text_keys))
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
        """The file of a record, and its row."""
        position = int(self._rows[index])
        file = self._groups[bisect.bisect_right(self._starts, position) - 1][0]
        first = self._starts[[name for name, _ in self._groups].index(file)]
        return f"row {position - first} of {file.name}"

    def __getitem__(self, index):
        position = int(self._rows[index])
        group = bisect.bisect_right(self._starts, position) - 1
        table = _row_group(*self._groups[group], (self._image_key, *self._text_keys))
        (row,) = table.slice(position - self._starts[group], 1).to_pylist()
        return {IMAGE: row[self._image_key] or b""} | {key: row[key] for key in self._text_keys}

    def label_names(self, key: str) -> list[str]:
        """The distinct texts of a column, sorted; for integers all from 0 to the largest that occurs."""
        if key not in self._text_keys:
            raise ValueError(f"parquet: {key!r} is none of the columns {', '.join(self._text_keys)}")
        values = set()
        for file in dict.fromkeys(file for file, _ in self._groups):
            with _parquet(file) as parquet:
                column = parquet.read(columns=[key])[key]
            if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_integer(column.type)):
                raise ValueError(f"parquet: {key!r} holds {column.type}; a label is a string or an integer")
            values |= set(pyarrow.compute.unique(column).to_pylist()) - {None}
        names = sorted(values)
        return names if isinstance(names[0], str) else [str(i) for i in range(names[-1] + 1)]


class ImageFolder(Sequence[Record]):
    """A folder of images, at any depth. The top-level subfolder of an image is its label. Images beside
    subfolders have no label, and then the folder has no classes. Hidden files and folders are ignored.

    Classes are in the order of their names; if all are integers (ImageNet-V2), in numeric order.
    Raises FileNotFoundError if there is no such folder, ValueError if it has no images.
    """

    def __init__(self, path: str):
        if not path:
            raise ValueError("image_folder: path is not set")
        self._left_out: collections.Counter[str] = collections.Counter()
        self._beside, folders = self._listed(io.as_path(path))
        numbers = all(folder.name.isdecimal() for folder in folders)
        folders.sort(key=lambda folder: int(folder.name) if numbers else folder.name)
        self._names = [folder.name for folder in folders]
        files = [(file, {"label": folder.name}) for folder in folders for file in self._images(folder)]
        self._files = files + [(file, {}) for file in self._beside]
        if not self._files:
            raise ValueError(f"image_folder: {path} has no images{' in its subfolders' if folders else ''}")

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        file, label = self._files[index]
        return {IMAGE: file.read_bytes()} | label

    def summary(self) -> str:
        """How many images there are, and how many other files were ignored."""
        parts = [f"{len(self):,} images"]
        if self._names:
            beside = f", {len(self._beside):,} of them beside these" if self._beside else ""
            parts.append(f"{len(self._names):,} subfolders{beside}")
        left_out = ", ".join(f"{count:,} {what}" for what, count in self._left_out.items())
        return " in ".join(parts) + (f"; left out: {left_out}" if left_out else "")

    def record_name(self, index: int) -> str:
        """The path of an image."""
        return str(self._files[index][0])

    def _listed(self, folder):
        """(images, subfolders) of a folder, by name; other files are counted."""
        images, folders = [], []
        for place in sorted(folder.iterdir()):
            if place.name.startswith("."):
                self._left_out["hidden"] += 1
            # os.path checks local disks only: epath would send a request to a bucket for each image.
            elif place.suffix.lower() in _IMAGE_SUFFIXES and not os.path.isdir(place):
                images.append(place)
            elif place.is_dir():
                folders.append(place)
            else:
                self._left_out["of other kinds"] += 1
        return images, folders

    def _images(self, folder):
        images, folders = self._listed(folder)
        yield from images
        for subfolder in folders:
            yield from self._images(subfolder)

    def label_names(self, key: str) -> list[str]:
        """The classes, which are the only label."""
        if key != "label" or not self._names:
            known = "label" if self._names else "none, without subfolders"
            raise ValueError(f"image_folder: {key!r} is no label; there is {known}")
        if self._beside:
            raise ValueError(
                f"image_folder: {len(self._beside)} images beside the subfolders are in no class, such as "
                f"{self._beside[0]}; move them into one, or away"
            )
        return self._names


SOURCES = {
    "emoji": EmojiPairs,
    "emoji_concepts": EmojiConcepts,
    "tfds": TfdsPairs,
    "parquet": ParquetPairs,
    "image_folder": ImageFolder,
}


class Entry(NamedTuple):
    """One source of a stream.

    path: its key under the stream's `data`. source: its config. weight: relative to the other sources.
    fields: {field: options}, with the source's own changes. fields_path: the key of these, or of the
    stream's.
    """

    path: str
    source: Mapping
    weight: float
    fields: Mapping[str, Mapping]
    fields_path: str = "fields"


def entries(data: Mapping) -> Iterator[Entry]:
    """Yields the sources of a stream's `data`: its `source`, or those of its mixture, `sources`."""
    if "source" in data:
        yield Entry("source", data["source"], 1.0, data["fields"])
    for i, entry in enumerate(data.get("sources", ())):
        changes = entry.get("fields", {})
        options = {name: {**field, **changes.get(name, {})} for name, field in data["fields"].items()}
        yield Entry(f"sources.{i}.source", entry["source"], entry["weight"], options, f"sources.{i}.fields")


def build(config: Mapping) -> Sequence[Record]:
    """The source that config["kind"] names, built from the other keys."""
    options = {key: value for key, value in config.items() if key != "kind"}
    return SOURCES[config["kind"]](**options)


def labels(source: Sequence, key: str) -> Labels:
    """The classes under a key of a source's records. Raises ValueError if it has no such label."""
    if not hasattr(source, "label_names"):
        raise ValueError(f"data: the source {type(source).__name__} has no labels")
    return Labels(key, source.label_names(key))


def record_name(source: Sequence, index: int) -> str:
    """A record's name for messages: its file, and its place there."""
    return source.record_name(index) if hasattr(source, "record_name") else f"record {index}"


def summary(source: Sequence) -> str:
    """A line: how many records a source has, in how many files, and what it ignores."""
    return source.summary() if hasattr(source, "summary") else f"{len(source):,} records"


def records(source: Sequence) -> Iterator[Record]:
    """Every record of a source, those of a group one after the other."""
    for i in range(len(source)):
        item = source[i]
        yield from item if isinstance(item, list) else [item]


@functools.lru_cache(4)  # of the module and not of a source, which workers must be able to pickle
def _row_group(file, number, columns):
    with _parquet(file) as parquet:
        return parquet.read_row_group(number, columns=list(columns))


def _parquet(file):
    """A parquet file, opened by epath in a bucket: pyarrow's own clients take other settings."""
    return pyarrow.parquet.ParquetFile(file.open("rb") if io.is_remote(file) else file)


def _other_columns(metadata, image_key):
    return tuple(name for name in metadata.schema.to_arrow_schema().names if name != image_key)


def _check_columns(file, metadata, keys):
    names = metadata.schema.to_arrow_schema().names
    for key in keys:
        if key not in names:
            raise ValueError(f"parquet: {file} has no column {key!r}; there are {', '.join(names)}")


def _flat_features(features, prefix=""):
    """{key: feature} of a TFDS FeaturesDict, one inside a sequence under "sequence/key", as in records."""
    flat = {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)  # of a sequence
        nested = hasattr(inner, "items")
        flat |= _flat_features(inner, f"{prefix}{key}/") if nested else {f"{prefix}{key}": inner}
    return flat
