"""From a source's records to what the rules read, and from what they keep to a set that training reads."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from big_ssl.curation.filters import Item, Verdict
from big_ssl.data import tfds_writer
from big_ssl.data.records import IMAGE, Record, values

# Of the set written: its name for TFDS, its only split, and the kind of its texts.
NAME, SPLIT, KIND = "curated_pairs", "train", "text"
DESCRIPTION = "Image-text pairs that the filters of big_ssl.curation kept."


@dataclasses.dataclass(frozen=True)
class Items(Sequence[Item]):
    """The records of a source as the rules read them: a view that decodes no picture.

    source: a big_ssl.data.sources source of single records; kinds: which of its texts are captions;
    sides: the kinds that hold the original's width and height, () to read the picture's header;
    duplicates: bool[N], pictures near to an evaluation set's; None for none.
    """

    source: Sequence[Record]
    kinds: Sequence[str]
    sides: Sequence[str] = ()
    duplicates: np.ndarray | None = None

    def __len__(self):
        return len(self.source)

    def __iter__(self):
        # Sequence's own stops at an IndexError, which TFDS doesn't raise.
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        record = self.source[index]
        digest = hashlib.blake2b(record[IMAGE], digest_size=16).hexdigest()
        width, height = _stated(record, self.sides) if self.sides else picture_size(record[IMAGE])
        duplicate = self.duplicates is not None and bool(self.duplicates[index])
        return Item(index, digest, width, height, tuple(_captions(record, self.kinds)), duplicate)


def picture_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) by the picture's header, (0, 0) where Pillow can't read it."""
    try:
        with Image.open(BytesIO(encoded)) as image:
            return image.size
    except Exception:  # each of Pillow's formats raises its own for damaged files
        return 0, 0


def examples(source: Sequence[Record], verdicts: Iterable[Verdict]) -> Iterator[tuple[int, dict]]:
    """(key, example) of every record that stays, as `write` takes them."""
    return (example(source, verdict) for verdict in verdicts if verdict.kept)


def example(source: Sequence[Record], verdict: Verdict) -> tuple[int, dict]:
    """One of `examples`."""
    return verdict.id, {"image": BytesIO(source[verdict.id][IMAGE]), KIND: list(verdict.kept)}


def write(folder: str, made, beam_options=None) -> int:
    """Writes a TFDS dataset in array_record shards, which sources.TfdsPairs reads; how many records.

    made, beam_options: see data.tfds_writer.
    """
    import tensorflow_datasets as tfds  # slow to import, and needed only here

    texts = tfds.features.Sequence(tfds.features.Text())
    features = {"image": tfds.features.Image(), KIND: texts}
    return tfds_writer.write(folder, NAME, DESCRIPTION, features, {SPLIT: made}, beam_options)[SPLIT]


def _captions(record, kinds):
    """Those that are texts and not empty."""
    candidates = (text for kind in kinds for text in values(record, kind))
    return (text for text in candidates if isinstance(text, str) and text.strip())


def _stated(record, sides):
    """The width and height that a record states of its original."""
    stated = [next(iter(values(record, side)), None) for side in sides]
    return tuple(int(value) if isinstance(value, int | np.integer) else 0 for value in stated)
