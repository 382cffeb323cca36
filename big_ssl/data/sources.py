"""Sources of records: random access, nothing decoded.

An item is a Record, {key: raw value}, or a list of records of the same concept, of which one is drawn each
time.
"""

import bisect
import collections
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NewType

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl import io
from big_ssl.data import decode
from big_ssl.data.coco import CocoImages
from big_ssl.data.composited_scenes import CompositedScenes
from big_ssl.data.emoji_drawings import EmojiConcepts, EmojiPairs
from big_ssl.data.image_maps import ImageMaps
from big_ssl.data.parquet import ParquetPairs
from big_ssl.data.records import IMAGE, Labels, Record
from big_ssl.data.voc import VocImages

# A source in a config: `kind`, a name in SOURCES, and that source's options.
SourceConfig = NewType("SourceConfig", Mapping)

# Those of torchvision, and GIF.
_IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
)


class TfdsPairs(Sequence[Record]):
    """A TFDS dataset prepared in a random-access format (array_record), read without TensorFlow.

    name, split, data_dir: as for tfds.data_source; image_key, text_keys: its feature names, nested
    ones as "captions/text"; without text_keys, all keys of the records; orientation, alpha: see
    decode.Options. Labels: its class labels. Raises FileNotFoundError if data_dir has no such dataset.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str,
        image_key: str = "image",
        text_keys: Sequence[str] = (),
        orientation: str = "",
        alpha: str = "",
    ):
        import tensorflow_datasets as tfds  # slow to import, and needed only here

        self.decode_options = decode.Options(orientation, alpha)
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


class ImageFolder(Sequence[Record]):
    """A folder of images, at any depth. The top-level subfolder of an image is its label. Images beside
    subfolders have no label, and then the folder has no classes. Hidden files and folders are ignored, and
    links to a folder that contains them. orientation, alpha: see decode.Options. suffixes: one or several
    ends of names that are images' too, such as ".npy", see decode.decode_channels.

    Classes are in the order of their names; if all are integers (ImageNet-V2), in numeric order.
    Raises FileNotFoundError if there is no such folder, ValueError if it has no images.
    """

    def __init__(self, path: str, orientation: str = "", alpha: str = "", suffixes: str | Sequence[str] = ()):
        self.decode_options = decode.Options(orientation, alpha)
        if not path:
            raise ValueError("image_folder: path is not set")
        suffixes = [suffixes] if isinstance(suffixes, str) else suffixes
        if wrong := [suffix for suffix in suffixes if not suffix.startswith(".")]:
            raise ValueError(f"image_folder: suffixes has {wrong[0]!r}; it must begin with a dot, like .npy")
        self._suffixes = {*_IMAGE_SUFFIXES, *(suffix.lower() for suffix in suffixes)}
        self._left_out: collections.Counter[str] = collections.Counter()
        root = io.as_path(path)
        self._beside, folders = self._listed(root, ())
        numbers = all(folder.name.isdecimal() for folder in folders)
        folders.sort(key=lambda folder: int(folder.name) if numbers else folder.name)
        self._names = [folder.name for folder in folders]
        classes = ((folder.name, self._images(folder, (root,))) for folder in folders)
        files = [(file, {"label": name}) for name, images in classes for file in images]
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

    def _listed(self, folder, parents):
        """(images, subfolders) of a folder, by name; other files are counted.

        parents: the folders through which it was reached. A link to one of them would never end.
        """
        images, folders = [], []
        above = {os.path.realpath(place) for place in (*parents, folder)}
        for place in sorted(folder.iterdir()):
            if place.name.startswith("."):
                self._left_out["hidden"] += 1
            # os.path checks local disks only: epath would send a request to a bucket for each image.
            elif place.suffix.lower() in self._suffixes and not os.path.isdir(place):
                images.append(place)
            elif not place.is_dir():
                self._left_out["of other kinds"] += 1
            elif os.path.realpath(place) in above:
                self._left_out["links in a circle"] += 1
            else:
                folders.append(place)
        return images, folders

    def _images(self, folder, parents):
        images, folders = self._listed(folder, parents)
        yield from images
        for subfolder in folders:
            yield from self._images(subfolder, (*parents, folder))

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
    "coco": CocoImages,
    "voc": VocImages,
    "image_maps": ImageMaps,
    "composited_scenes": CompositedScenes,
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


def decode_options(source: Sequence, default: decode.Options) -> decode.Options:
    """How a source's images are decoded: its options, with the default's values for those that are empty."""
    return getattr(source, "decode_options", decode.Options()).or_else(default)


def summary(source: Sequence) -> str:
    """A line: how many records a source has, in how many files, and what it ignores."""
    return source.summary() if hasattr(source, "summary") else f"{len(source):,} records"


def records(source: Sequence) -> Iterator[Record]:
    """Every record of a source, those of a group one after the other."""
    for i in range(len(source)):
        item = source[i]
        yield from item if isinstance(item, list) else [item]


def _flat_features(features, prefix=""):
    """{key: feature} of a TFDS FeaturesDict, one inside a sequence under "sequence/key", as in records."""
    flat = {}
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)  # of a sequence
        nested = hasattr(inner, "items")
        flat |= _flat_features(inner, f"{prefix}{key}/") if nested else {f"{prefix}{key}": inner}
    return flat
