"""Sources of image-text records: random access, nothing decoded.

An item is a Record, or a list of records that show the same thing, of which one is drawn at
each visit.
"""

import bisect
import dataclasses
import functools
import hashlib
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NewType

import pyarrow.compute
import pyarrow.parquet
from etils import epath
from flax.traverse_util import flatten_dict


class Record(NamedTuple):
    """One raw example. image: encoded bytes; texts: {kind: candidates}, e.g. "tags"."""

    image: bytes
    texts: Mapping[str, Sequence[Any]]


# What a config says of a source: `kind`, a name in SOURCES, and that source's options.
SourceConfig = NewType("SourceConfig", Mapping)

_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".tif", ".tiff"))


@dataclasses.dataclass(frozen=True)
class Labels:
    """kind: which of a record's texts is its label; names: the classes, in the order of their numbers."""

    kind: str
    names: Sequence[str]

    def number(self, record: Record) -> int:
        """The class of a record. Raises ValueError where it is in none."""
        value = next(iter(record.texts.get(self.kind, ())), None)
        if value in self._numbers:
            return self._numbers[value]
        if isinstance(value, (str, type(None))) or not 0 <= int(value) < len(self.names):
            raise ValueError(f"data: there is a picture whose {self.kind} is {value!r}, which is no class")
        return int(value)

    @functools.cached_property
    def _numbers(self):
        return {name: i for i, name in enumerate(self.names)}


class EmojiPairs(Sequence[Record]):
    """The embedded emoji drawings with their names.

    styles: which drawings; concepts: "seen" leaves out the held-out fifth of concept stems,
    "unseen" keeps only that, "all" keeps both. `rows` carries every column but the picture.
    Labels: "label", the concept; "category" and "subcategory".
    """

    def __init__(self, styles: Sequence[str], concepts: str = "all"):
        if concepts not in ("all", "seen", "unseen"):
            raise ValueError(f"emoji: no concepts {concepts!r}; there are all, seen, unseen")
        table = _read_embedded()
        table = table.filter(pyarrow.compute.is_in(table["style"], pyarrow.array(list(styles))))
        missing = set(styles) - set(table["style"].to_pylist())
        if missing:
            raise ValueError(f"emoji: no style {sorted(missing)[0]!r}; there are {', '.join(emoji_styles())}")
        if concepts != "all":
            keep = [
                is_held_out(unified) == (concepts == "unseen") for unified in table["unified"].to_pylist()
            ]
            table = table.filter(pyarrow.array(keep))
        self.rows = table.drop_columns(["webp"]).to_pylist()
        self._images = table["webp"].combine_chunks()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        names = [name.replace("_", " ") for name in row["short_names"]]
        texts = {kind: [row[kind]] for kind in ("label", "name", "category", "subcategory")}
        return Record(self._images[index].as_py(), texts | {"short_names": names, "tags": row["tags"]})

    def label_names(self, kind: str) -> list[str]:
        """The classes of a kind of label, of all embedded drawings, whatever the styles here."""
        if kind not in ("label", "category", "subcategory"):
            raise ValueError(f"emoji: {kind!r} is no label; there are label, category, subcategory")
        return sorted(set(_read_embedded()[kind].to_pylist()))


class EmojiConcepts(Sequence[list[Record]]):
    """The embedded drawings with a concept an item: the list of its drawings, one a style.

    Each epoch then shows every concept once, and a batch has no two drawings of one concept,
    which the contrastive loss would push apart.
    """

    def __init__(self, styles: Sequence[str], concepts: str = "all"):
        self._pairs = EmojiPairs(styles, concepts)
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(self._pairs.rows):
            groups.setdefault(row["unified"], []).append(i)
        self._groups = list(groups.values())

    def __len__(self):
        return len(self._groups)

    def __getitem__(self, index):
        return [self._pairs[i] for i in self._groups[index]]


class TfdsPairs(Sequence[Record]):
    """A TFDS dataset prepared in a random-access format (array_record), read without TensorFlow.

    name, split, data_dir: as for tfds.data_source; image_key, text_keys: its feature names, one
    inside another as "captions/text"; without text_keys, all that the records hold. Labels: its
    class labels. Raises FileNotFoundError where data_dir holds no such dataset.
    """

    def __init__(
        self, name: str, split: str, data_dir: str, image_key: str = "image", text_keys: Sequence[str] = ()
    ):
        import tensorflow_datasets as tfds  # slow to import, and needed only here

        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.registered.DatasetNotFoundError as error:
            raise FileNotFoundError(f"data: no TFDS dataset {name!r} in {data_dir!r}") from error
        decoders = {image_key: tfds.decode.SkipDecoding()}
        self._source = builder.as_data_source(split=split, decoders=decoders)
        self._features, self._name = builder.info.features, name
        self._image_key, self._text_keys = image_key, tuple(text_keys)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        example = self._source[index]
        values = flatten_dict(example, sep="/")
        keys = self._text_keys or [key for key in values if key != self._image_key]
        return Record(example[self._image_key], {key: _texts(values[key]) for key in keys})

    def label_names(self, kind: str) -> list[str]:
        """The classes of a class label, in the order of its numbers."""
        names = {key: feature.names for key, feature in self._features.items() if hasattr(feature, "names")}
        if kind not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"tfds: {kind!r} of {self._name!r} is no class label; there is {known}")
        return names[kind]


class ParquetPairs(Sequence[Record]):
    """Parquet files: a column of encoded pictures, and columns of texts, one or a list in a row.

    path: a file, or a folder of *.parquet in the order of their names; text_keys: the columns of
    texts, all but the picture's if none is named. Few row groups stay in memory, so a set of many is
    meant to be read in order, as curation does, and not shuffled. Labels: columns of one text or
    whole number in a row. Raises FileNotFoundError where there is no such file, ValueError for a column
    that a file lacks.
    """

    def __init__(self, path: str, image_key: str = "image", text_keys: Sequence[str] = ()):
        place = epath.Path(path)
        files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
        if not files or not files[0].exists():
            raise FileNotFoundError(f"parquet: no file {path}" + "/*.parquet" * place.is_dir())
        self._image_key, self._text_keys = image_key, tuple(text_keys)
        self._groups, self._starts = [], [0]
        for file in files:
            metadata = pyarrow.parquet.read_metadata(file)
            self._text_keys = self._text_keys or _other_columns(metadata, image_key)
            _check_columns(file, metadata, (image_key, *self._text_keys))
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def __len__(self):
        return self._starts[-1]

    def __getitem__(self, index):
        position = range(len(self))[index]
        group = bisect.bisect_right(self._starts, position) - 1
        table = _row_group(*self._groups[group], (self._image_key, *self._text_keys))
        (row,) = table.slice(position - self._starts[group], 1).to_pylist()
        return Record(row[self._image_key] or b"", {key: _texts(row[key]) for key in self._text_keys})

    def label_names(self, kind: str) -> list[str]:
        """The different texts of a column, sorted; of whole numbers all from 0 to the largest that occurs."""
        if kind not in self._text_keys:
            raise ValueError(f"parquet: {kind!r} is none of the columns {', '.join(self._text_keys)}")
        found = set()
        for file in dict.fromkeys(file for file, _ in self._groups):
            column = pyarrow.parquet.read_table(file, columns=[kind])[kind]
            if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_integer(column.type)):
                raise ValueError(f"parquet: {kind!r} holds {column.type}; a label is a string or an integer")
            found |= set(pyarrow.compute.unique(column).to_pylist()) - {None}
        names = sorted(found)
        return names if isinstance(names[0], str) else [str(i) for i in range(names[-1] + 1)]


class ImageFolder(Sequence[Record]):
    """A folder with a subfolder of pictures, at any depth, for each class; the class is the label.

    Classes come in the order of their names; where all are integers (ImageNet-V2), in the order
    of these. Raises FileNotFoundError where there is no such folder, ValueError where it has no
    classes or no pictures.
    """

    def __init__(self, path: str):
        folders = [folder for folder in epath.Path(path).iterdir() if folder.is_dir()]
        numbers = all(folder.name.isdecimal() for folder in folders)
        folders.sort(key=lambda folder: int(folder.name) if numbers else folder.name)
        self._names = [folder.name for folder in folders]
        self._files = [(file, folder.name) for folder in folders for file in _pictures(folder)]
        if not self._files:
            missing = "pictures in its subfolders" if folders else "subfolders, one for each class"
            raise ValueError(f"image_folder: {path} has no {missing}")

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        file, name = self._files[index]
        return Record(file.read_bytes(), {"label": [name]})

    def label_names(self, kind: str) -> list[str]:
        """The classes, which are the only label."""
        if kind != "label":
            raise ValueError(f"image_folder: {kind!r} is no label; there is label")
        return self._names


SOURCES = {
    "emoji": EmojiPairs,
    "emoji_concepts": EmojiConcepts,
    "tfds": TfdsPairs,
    "parquet": ParquetPairs,
    "image_folder": ImageFolder,
}


def build(config: Mapping) -> Sequence[Record]:
    """The source that config["kind"] names, built from the other keys."""
    options = {key: value for key, value in config.items() if key != "kind"}
    return SOURCES[config["kind"]](**options)


def labels(config: Mapping, source: Sequence, kind: str) -> Labels:
    """The classes of one kind of label of a source that was built from config. Raises ValueError where it
    has no such label."""
    if not hasattr(source, "label_names"):
        raise ValueError(f"data: the source {config['kind']} has no labels")
    return Labels(kind, source.label_names(kind))


def records(source: Sequence) -> Iterator[Record]:
    """Every record of a source, those of a group one after the other."""
    for i in range(len(source)):
        item = source[i]
        yield from item if isinstance(item, list) else [item]


def is_held_out(unified: str) -> bool:
    """Whether a concept ('1F468-200D-1F33E') is kept out of training: a fifth of the stems.

    By stem, the first codepoint, so that the variants of one concept stay on one side.
    """
    stem = unified.split("-")[0]
    return int(hashlib.sha1(stem.encode()).hexdigest(), 16) % 5 == 0


def emoji_styles() -> list[str]:
    """The names of the embedded drawing styles, openmoji (evaluation only) included."""
    return sorted(set(_read_embedded()["style"].to_pylist()))


@functools.cache  # every set of drawings is a part of it
def _read_embedded():
    folder = epath.Path(importlib.resources.files("big_ssl.data") / "embedded")
    files = ("emoji_styles.parquet", "openmoji_eval.parquet")
    return pyarrow.concat_tables(pyarrow.parquet.read_table(folder / name) for name in files)


def _pictures(folder):
    """All below a folder, in order; epath searches no trees."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICTURES:
            yield path
        elif path.is_dir():
            yield from _pictures(path)


@functools.lru_cache(4)  # of the module and not of a source, which workers must be able to pickle
def _row_group(file, number, columns):
    with pyarrow.parquet.ParquetFile(file) as parquet:
        return parquet.read_row_group(number, columns=list(columns))


def _other_columns(metadata, image_key):
    return tuple(name for name in metadata.schema.to_arrow_schema().names if name != image_key)


def _check_columns(file, metadata, keys):
    names = metadata.schema.to_arrow_schema().names
    for key in keys:
        if key not in names:
            raise ValueError(f"parquet: {file} has no column {key!r}; there are {', '.join(names)}")


def _texts(value):
    """A feature's candidates: none, one text or several, bytes decoded as UTF-8.

    What is no text stays what it is, for the pipeline to replace and count.
    """
    if value is None:
        return []
    several = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0)
    values = list(value) if several else [value]
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
