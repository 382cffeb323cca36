"""Converts a source's records to the rules' input, and the kept records to a dataset for training."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from big_ssl.curation.filters import Decision, Item
from big_ssl.data import tfds_writer
from big_ssl.data.records import IMAGE, Record, values

# The written dataset's TFDS name, its only split, and its feature name of texts.
NAME, SPLIT, KIND = "curated_pairs", "train", "text"
DESCRIPTION = "Image-text pairs that the filters of big_ssl.curation kept."


@dataclasses.dataclass(frozen=True)
class Items(Sequence[Item]):
    """A lazy view of a source's records as Items; it decodes no images.

    source: a big_ssl.data.sources source of single records; kinds: the text keys that are captions; sides:
    the text keys with the original's width and height, () to read the image's header; duplicates: bool[N],
    near-duplicates of evaluation images, None for none.
    """

    source: Sequence[Record]
    kinds: Sequence[str]
    sides: Sequence[str] = ()
    duplicates: np.ndarray | None = None

    def __len__(self):
        return len(self.source)

    def __iter__(self):
        # Sequence.__iter__ stops at an IndexError, which TFDS doesn't raise.
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        record = self.source[index]
        digest = hashlib.blake2b(record[IMAGE], digest_size=16).hexdigest()
        width, height = _recorded_size(record, self.sides) if self.sides else image_size(record[IMAGE])
        duplicate = self.duplicates is not None and bool(self.duplicates[index])
        return Item(index, digest, width, height, tuple(_captions(record, self.kinds)), duplicate)


def image_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) from the image's header, (0, 0) if Pillow can't read it."""
    try:
        with Image.open(BytesIO(encoded)) as image:
            return image.size
    except Exception:  # Pillow's formats raise different errors for damaged files
        return 0, 0


def examples(source: Sequence[Record], decisions: Iterable[Decision]) -> Iterator[tuple[int, dict]]:
    """Yields (key, example) of every record to keep, for `write`."""
    return (example(source, decision) for decision in decisions if decision.kept)


def example(source: Sequence[Record], decision: Decision) -> tuple[int, dict]:
    """One of `examples`."""
    return decision.id, {"image": BytesIO(source[decision.id][IMAGE]), KIND: list(decision.kept)}


def write(folder: str, made, beam_options=None) -> int:
    """Writes a TFDS dataset in array_record shards, for sources.TfdsPairs; returns the number of records.

    Args:
      folder: the data_dir.
      made, beam_options: see data.tfds_writer.
    """
    import tensorflow_datasets as tfds  # slow to import, and needed only here

    texts = tfds.features.Sequence(tfds.features.Text())
    features = {"image": tfds.features.Image(), KIND: texts}
    return tfds_writer.write(folder, NAME, DESCRIPTION, features, {SPLIT: made}, beam_options)[SPLIT]


def _captions(record, kinds):
    """The record's non-empty texts of these kinds."""
    candidates = (text for kind in kinds for text in values(record, kind))
    return (text for text in candidates if isinstance(text, str) and text.strip())


def _recorded_size(record, sides):
    """The original's (width, height) in the record's fields; 0 if missing."""
    recorded = [next(iter(values(record, side)), None) for side in sides]
    return tuple(int(value) if isinstance(value, int | np.integer) else 0 for value in recorded)
