"""The embedded emoji drawings, as sources of images with their names."""

import functools
import hashlib
import importlib.resources
from collections.abc import Sequence

import numpy as np
import pyarrow.compute
import pyarrow.parquet

from big_ssl import io
from big_ssl.data.records import Record, part


class EmojiPairs(Sequence[Record]):
    """The embedded emoji drawings with their names.

    styles: the drawing styles; concepts: "seen" leaves out the held-out fifth of concept stems,
    "unseen" keeps only that, "all" keeps both. share: the fraction of these drawings, drawn at
    random; a larger subset contains a smaller one. languages: adds texts under "noisy", one per drawing,
    see `_noisy_text`.
    `rows` has every column but the image. Labels: "label", the concept; "category" and
    "subcategory". Raises ValueError for an unknown style, `concepts` or language, and an invalid share.
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
        table = table.take(np.array(part(len(table), share)))
        self.rows = table.drop_columns(["webp"]).to_pylist()
        self._images = table["webp"].combine_chunks()
        foreign = [_read_language(language) for language in languages]
        self._noisy = [_noisy_text(row, foreign) for row in self.rows] if foreign else None

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        names = [name.replace("_", " ") for name in row["short_names"]]
        texts = {key: row[key] for key in ("label", "name", "category", "subcategory")}
        noisy = {"noisy": self._noisy[index]} if self._noisy else {}
        image = {"image": self._images[index].as_py()}
        return image | texts | noisy | {"short_names": names, "tags": row["tags"]}

    def record_name(self, index: int) -> str:
        """The style and the concept of a drawing."""
        return f"{self.rows[index]['style']}/{self.rows[index]['unified']}"

    def label_names(self, key: str) -> list[str]:
        """The classes of a key, of all embedded drawings, whatever the styles here."""
        if key not in ("label", "category", "subcategory"):
            raise ValueError(f"emoji: {key!r} is no label; there are label, category, subcategory")
        return sorted(set(_read_embedded()[key].to_pylist()))


class EmojiConcepts(Sequence[list[Record]]):
    """The embedded drawings, one item per concept: the list of its drawings, one per style.

    Each epoch then shows every concept once, and a batch has no two drawings of one concept,
    which the contrastive loss would push apart. Options and errors are those of EmojiPairs; share is a
    fraction of the drawings, so that a subset has fewer drawings of most concepts, and none of some.
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
    """Synthesises noisy alt-text: the English tags alone, the name in another language, or the tags in that
    language, for a third of the drawings each. The drawing's hash decides, so its text never changes."""
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


@functools.cache  # every set of drawings is a subset of this table
def _read_embedded():
    return pyarrow.concat_tables(map(_embedded, ("emoji_styles.parquet", "openmoji_eval.parquet")))


@functools.cache
def _embedded(name):
    folder = io.as_path(importlib.resources.files("big_ssl.data") / "embedded")
    return pyarrow.parquet.read_table(folder / name)


def _hash(text):
    return int(hashlib.sha1(text.encode()).hexdigest(), 16)
