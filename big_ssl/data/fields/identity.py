"""Which examples of a batch show the same: a key for each, for losses that take equal keys as positives."""

import dataclasses
import hashlib
from typing import ClassVar

import numpy as np

from big_ssl.data.fields.base import Field

CLASS_BY = ("number", "name")
CAPTION_BY = ("text", "pair")


@dataclasses.dataclass(frozen=True)
class Identity(Field):
    """key: uint32[2], the halves of a 64-bit hash; valid: bool[], False for a missing example.

    The hash is of the caption or name that the text field drew, letter by letter: before any prompt, and
    before a class's name is cleaned for one, so that "ice+cream" and "ice cream" are two descriptions. Among
    B = 24,576 examples 64 bits give 1.6e-11 false pairs per batch, 32 bits 0.07.

    UniCL and Florence decide differently which examples are equal; the defaults are between them.

    UniCL, class_by="number" and caption_by="pair": images of one class are equal, a captioned image equals
    nothing but itself (arXiv 2204.03610, algorithm 1). Florence, class_by="name" and caption_by="text": all
    images of one description are equal, whether it is a caption or the name of a class (arXiv 2111.11432,
    section 2.1).

    Args:
      text: the text field whose caption or class it is.
      class_by: "number", the class's number and label in its source: class 3 of one source is class 3 of
        another only if both call it the same, two classes of one name are not equal, and no caption equals a
        class. "name": the name in the text field's label_set, as if it were a caption, so that it equals that
        caption and a class of that name in another source.
      caption_by: "text", equal captions are equal, letter by letter; "pair", no two are.
    """

    text: str = "text"
    class_by: str = "number"
    caption_by: str = "text"

    counter: ClassVar[str] = "replaced_texts"
    load_order: ClassVar[int] = 3

    def __post_init__(self):
        for option, known in (("class_by", CLASS_BY), ("caption_by", CAPTION_BY)):
            if getattr(self, option) not in known:
                raise ValueError(f"{option} is {getattr(self, option)!r}; use {' or '.join(known)}")

    def text_field(self):
        return self.text

    def keys(self):
        return {}

    def zeros(self):
        return dict(key=np.zeros(2, np.uint32), valid=np.bool_(False))

    def load(self, record, draws):
        del record  # the text field has read it
        description = draws.descriptions[self.text]
        return dict(key=self._key(description, draws.rng), valid=np.bool_(True))

    def _key(self, description, rng):
        if description.class_id and self.class_by == "number":
            return hashed(description.class_id, b"class")
        if not description.class_id and self.caption_by == "pair":
            return rng.integers(2**32, size=2, dtype=np.uint32)
        return hashed(description.text, b"text")


def hashed(text: str, namespace: bytes) -> np.ndarray:
    """uint32[2]: 64 bits of BLAKE2b, the same on every machine; other namespaces give other hashes."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, person=namespace).digest()
    return np.frombuffer(digest, "<u4").astype(np.uint32)
