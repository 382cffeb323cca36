"""The base class of all kinds of batch fields."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from big_ssl.data.crops import Crop, Geometry, Prepared
from big_ssl.data.records import BadValue, Record
from big_ssl.data.tokenizers import Tokenizer


class Context(NamedTuple):
    """A field's settings besides its options.

    name: the field's. crops: {image field: its crop} of the stream. length: tokens of a text.
    tokenizer, source: None until the data is opened; shapes and device transforms need neither.
    """

    name: str = ""
    crops: Mapping[str, Crop] = {}
    length: int = 0
    tokenizer: Tokenizer | None = None
    source: Any = None


class Description(NamedTuple):
    """What a text field drew, before any prompt.

    text: the caption, or the class's name as its label set has it, not cleaned. class_id: the class's number
    and label in its source; "" for a caption.
    """

    text: str
    class_id: str = ""


class Draws(NamedTuple):
    """The random draws for loading a record once, shared by its fields.

    rng: NumPy's. prepared: {image field: Prepared}. geometries: {image field: the boxes of its crops}.
    descriptions: {text field: Description}. These are filled when image and text fields are loaded, before
    the fields that belong to them.
    """

    rng: np.random.Generator
    prepared: dict[str, Prepared]
    geometries: dict[str, Sequence[Geometry]]
    descriptions: dict[str, Description]


@dataclasses.dataclass(frozen=True)
class Field:
    """One kind of batch field; its dataclass fields are the options that a config may set.

    A kind is a subclass in one file and a line in data/fields/__init__.py. It must define `zeros` and `load`.

    counter: the counter of records that were replaced because of a bad value of this kind.
    needs_tokenizer: whether loading it needs context.tokenizer.
    load_order: fields with a lower number are loaded, and draw their random numbers, first; fields with equal
      numbers in the order of the config.
    """

    _: dataclasses.KW_ONLY
    context: Context = dataclasses.field(default_factory=Context)

    counter: ClassVar[str]
    needs_tokenizer: ClassVar[bool] = False
    load_order: ClassVar[int] = 0

    def image_field(self) -> str:
        """The image field whose geometric transforms this field shares; "" for none."""
        return ""

    def text_field(self) -> str:
        """The text field whose drawn text this field describes; "" for none."""
        return ""

    def zeros(self) -> Any:
        """Returns an array, or a dict of arrays, of the shapes and dtypes of one example's value.

        It stands for a missing example, whose step changes nothing.
        """
        raise NotImplementedError

    def load(self, record: Record, draws: Draws) -> Any:
        """Returns one example's value. Raises BadValue if the record's can't be used."""
        raise NotImplementedError

    def keys(self) -> dict[str, str]:
        """{option: the record's key that it names}. A key that no record has is an error at start."""
        return {"key": getattr(self, "key")}  # noqa: B009  (subclasses declare it)

    def missing_keys(self, present: Collection[str]) -> dict[str, str]:
        """Those of `keys` that are not among the present ones."""
        return {option: key for option, key in self.keys().items() if key and key not in present}

    def check(self) -> None:
        """Raises ValueError, in a line, if the opened source or tokenizer can't provide this field."""

    def class_names(self) -> Sequence[str] | None:
        """The names of its classes in the opened source; None if it has none."""
        return None

    def classes(self) -> int | None:
        """How many classes its values have; None if they have none."""
        names = self.class_names()
        return None if names is None else len(names)

    def device_options(self) -> dict[str, Any]:
        """{option: value} of the device transform, in which a stream's sources can't differ."""
        return {}

    def encoder_inputs(self, value, key, train: bool) -> dict:
        """The device transform: an encoder's arguments, of a batch of values.

        Args:
          value: a batch's values, traced.
          key: this step's random key of the field.
          train: whether to change images at random; masks of patches are drawn anyway.

        Raises:
          ValueError: if no encoder reads this kind.
        """
        raise ValueError(f"no encoder reads the field {self.context.name}")

    def mirror(self, value, flips):
        """The device transform of a field with an `image_field`: mirrors the values for which flips,
        bool[B, ...], is True, as their images are."""
        raise NotImplementedError


def required(value, key: str):
    """value, or BadValue if the record has none under this key."""
    if value is None:
        raise BadValue(f"no {key!r}")
    return value
