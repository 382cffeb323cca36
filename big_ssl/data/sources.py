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

import numpy as np
import pyarrow.compute
import pyarrow.parquet
from flax.traverse_util import flatten_dict

from big_ssl import io


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
    "unseen" keeps only that, "all" keeps both. share: of these drawings, by lot; a smaller share is a
    part of a larger. languages: adds texts of the kind "noisy", one a drawing, see `_noisy_text`.
    `rows` carries every column but the picture. Labels: "label", the concept; "category" and
    "subcategory". Raises ValueError for a style, a half, a share or a language that is none.
    """

    def __init__(
        self, styles: Sequence[str], concepts: str = "all", share: float = 1.0, languages: Sequence[str] = ()
    ):
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
        table = table.take(np.array(_part(len(table), share)))
        self.rows = table.drop_columns(["webp"]).to_pylist()
        self._images = table["webp"].combine_chunks()
        foreign = [_read_language(language) for language in languages]
        self._noisy = [_noisy_text(row, foreign) for row in self.rows] if foreign else None

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        names = [name.replace("_", " ") for name in row["short_names"]]
        texts = {kind: [row[kind]] for kind in ("label", "name", "category", "subcategory")}
        if self._noisy:
            texts["noisy"] = [self._noisy[index]]
        return Record(self._images[index].as_py(), texts | {"short_names": names, "tags": row["tags"]})

    def label_names(self, kind: str) -> list[str]:
        """The classes of a kind of label, of all embedded drawings, whatever the styles here."""
        if kind not in ("label", "category", "subcategory"):
            raise ValueError(f"emoji: {kind!r} is no label; there are label, category, subcategory")
        return sorted(set(_read_embedded()[kind].to_pylist()))


class EmojiConcepts(Sequence[list[Record]]):
    """The embedded drawings with a concept an item: the list of its drawings, one a style.

    Each epoch then shows every concept once, and a batch has no two drawings of one concept,
    which the contrastive loss would push apart. Options and errors are those of EmojiPairs; share is of
    the drawings, so that a part has fewer of most concepts, and none of some.
    """

    def __init__(
        self, styles: Sequence[str], concepts: str = "all", share: float = 1.0, languages: Sequence[str] = ()
    ):
        self._pairs = EmojiPairs(styles, concepts, share, languages)
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

        if str(io.as_path(data_dir)).startswith("s3://"):
            raise ValueError(f"data: {data_dir}: array_record is read from disks and gs:// alone")
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
    texts, all but the picture's if none is named; share: of the rows, by lot, in order; a smaller share
    is a part of a larger. Few row groups stay in memory, so a set of many is meant to be read in
    order, as curation does, and not shuffled. Labels: columns of one text or whole number in a row.
    Raises FileNotFoundError where there is no such file, ValueError for a column that a file lacks, and
    for a share that is none.
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
        self._rows = _part(self._starts[-1], share)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        position = int(self._rows[index])
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
            with _parquet(file) as parquet:
                column = parquet.read(columns=[kind])[kind]
            if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_integer(column.type)):
                raise ValueError(f"parquet: {kind!r} holds {column.type}; a label is a string or an integer")
            found |= set(pyarrow.compute.unique(column).to_pylist()) - {None}
        names = sorted(found)
        return names if isinstance(names[0], str) else [str(i) for i in range(names[-1] + 1)]


class ImageFolder(Sequence[Record]):
    """A folder with a subfolder of pictures, at any depth, for each class; the class is the label. Or one of
    pictures without subfolders, which have no label then. Beside subfolders pictures are left out, and so is
    what is hidden.

    Classes come in the order of their names; where all are integers (ImageNet-V2), in the order
    of these. Raises FileNotFoundError where there is no such folder, ValueError where it has no
    pictures.
    """

    def __init__(self, path: str):
        if not path:
            raise ValueError("image_folder: path is not set")
        inside = [place for place in io.as_path(path).iterdir() if not place.name.startswith(".")]
        folders = [place for place in inside if place.is_dir()]
        numbers = all(folder.name.isdecimal() for folder in folders)
        folders.sort(key=lambda folder: int(folder.name) if numbers else folder.name)
        self._names = [folder.name for folder in folders]
        files = [(file, {"label": [folder.name]}) for folder in folders for file in _pictures(folder)]
        self._files = files if folders else [(file, {}) for file in _pictures(io.as_path(path))]
        if not self._files:
            raise ValueError(f"image_folder: {path} has no pictures{' in its subfolders' if folders else ''}")

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        file, texts = self._files[index]
        return Record(file.read_bytes(), texts)

    def label_names(self, kind: str) -> list[str]:
        """The classes, which are the only label."""
        if kind != "label" or not self._names:
            known = "label" if self._names else "none, without subfolders"
            raise ValueError(f"image_folder: {kind!r} is no label; there is {known}")
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
    return _hash(stem) % 5 == 0


def emoji_styles() -> list[str]:
    """The names of the embedded drawing styles, openmoji (evaluation only) included."""
    return sorted(set(_read_embedded()["style"].to_pylist()))


def emoji_languages() -> list[str]:
    """The languages, other than English, in which the embedded concepts have names and tags."""
    return pyarrow.compute.unique(_embedded("emoji_languages.parquet")["language"]).to_pylist()


def _noisy_text(row, foreign):
    """What someone may have set beside a drawing: its English tags alone, its name in another language, or
    its tags in that, a third each. By the drawing's hash: a picture's alt-text is the same at every visit."""
    draw, kind = divmod(_hash(f"{row['style']} {row['unified']}"), 3)
    named = foreign[draw % len(foreign)][row["unified"]]
    return (" ".join(row["tags"]), named["label"], " ".join(named["tags"]))[kind]


@functools.cache
def _read_language(language):
    """{concept: its row} in a language."""
    if language not in emoji_languages():
        raise ValueError(f"emoji: no language {language!r}; there are {', '.join(emoji_languages())}")
    table = _embedded("emoji_languages.parquet")
    rows = table.filter(pyarrow.compute.equal(table["language"], language)).to_pylist()
    return {row["unified"]: row for row in rows}


@functools.cache  # every set of drawings is a part of it
def _read_embedded():
    return pyarrow.concat_tables(map(_embedded, ("emoji_styles.parquet", "openmoji_eval.parquet")))


@functools.cache
def _embedded(name):
    folder = io.as_path(importlib.resources.files("big_ssl.data") / "embedded")
    return pyarrow.parquet.read_table(folder / name)


def _part(count, share):
    """The positions, in order, of a share of `count`, by lot and never none."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must lie in (0, 1]")
    if share == 1:
        return range(count)
    kept = np.random.default_rng(0).permutation(count)[: max(1, round(share * count))]
    return np.sort(kept)


def _hash(text):
    return int(hashlib.sha1(text.encode()).hexdigest(), 16)


def _pictures(folder):
    """All below a folder that are not hidden, in order; epath searches no trees."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in _PICTURES:
            yield path
        elif path.is_dir():
            yield from _pictures(path)


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


def _texts(value):
    """A feature's candidates: none, one text or several, bytes decoded as UTF-8.

    What is no text stays what it is, for the pipeline to replace and count.
    """
    if value is None:
        return []
    several = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0)
    values = list(value) if several else [value]
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
