"""Annotations of an image field's pixels: boxes, and a class or a depth for each pixel.

A record's crops are drawn once, by the image field; these fields are cropped to the same boxes, and mirrored
on the device with the image. A field of n crops has a leading axis [n], as its image has.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from big_ssl.data import decode, records, sources
from big_ssl.data.fields.base import Field, required
from big_ssl.data.records import BadValue

# Orders of a box's four numbers.
BOX_ORDERS = ("xyxy", "yxyx", "xywh")


@dataclasses.dataclass(frozen=True)
class Spatial(Field):
    """A field that shares the geometric transforms of the image field `image`."""

    image: str
    key: str

    load_order: ClassVar[int] = 2

    def image_field(self):
        return self.image

    @property
    def crop_shape(self) -> tuple[int, ...]:
        """Of the image's crops: ([n], height, width)."""
        return self.context.crops[self.image].shape[:-1]

    def stacked(self, parts: list):
        """Stacks the values of the crops to [n, ...]; the only value if the image has no axis [n]."""
        if len(self.crop_shape) == 2:
            return parts[0]
        return jax.tree.map(lambda *crops: np.stack(crops), *parts)

    def geometries(self, draws):
        """The boxes of the image's crops."""
        return draws.geometries[self.image]

    def plane(self, record, draws):
        """[H, W] of the record's encoded or plain array of one channel, upright if its image is.

        Raises BadValue if it is not such an array, has another aspect than its image, or has its image's
        shape turned by 90 degrees.
        """
        options = sources.decode_options(self.context.source, decode.TRAINING)
        plane = read_plane(record, self.key, options)
        width, height = draws.prepared[self.image].size
        if plane.shape[0] * height == plane.shape[1] * width and width != height:
            raise BadValue(
                f"{self.key!r} has the shape {plane.shape}, and its image {(height, width)}: its EXIF "
                "orientation turns one of them; the source's orientation='stored' turns none"
            )
        # To a pixel, by which a smaller map is rounded.
        if abs(plane.shape[0] * width - plane.shape[1] * height) > max(width, height):
            raise BadValue(f"{self.key!r} has the shape {plane.shape}, not the aspect of {(height, width)}")
        return plane


@dataclasses.dataclass(frozen=True)
class Boxes(Spatial):
    """boxes: float32[max_boxes, 4]; labels: int32[max_boxes]; valid: bool[max_boxes], False in unused rows.

    A box is (left, top, right, bottom) in fractions of the crop's width and height. It is clipped to the
    image and the crop, and dropped if less than a pixel of its width or height remains. If there are more
    than max_boxes, the first are kept.

    Args:
      image: the image field that it belongs to.
      key: where a record has its boxes: [N, 4], or none.
      max_boxes: rows.
      class_key: where it has their classes, N numbers or names; "" for no classes, all 0.
      ignore_key: where it has N flags of boxes to leave out, as around crowds; "" for none.
      order: of a box in the record: "yxyx" (TFDS), "xyxy" or "xywh" (COCO's files).
      normalized: whether a record's boxes are fractions of the image's width and height, or pixels.
    """

    max_boxes: int = 100
    class_key: str = ""
    ignore_key: str = ""
    order: str = "yxyx"
    normalized: bool = True

    counter: ClassVar[str] = "replaced_boxes"

    def __post_init__(self):
        if self.order not in BOX_ORDERS:
            raise ValueError(f"order is {self.order!r}; use {', '.join(BOX_ORDERS)}")
        if self.max_boxes < 1:
            raise ValueError(f"max_boxes is {self.max_boxes}; it must be at least 1")

    def keys(self):
        return dict(key=self.key, class_key=self.class_key, ignore_key=self.ignore_key)

    def check(self):
        _ = self._labels
        counts = self.context.source.counts(self.key) if hasattr(self.context.source, "counts") else []
        if too_many := sum(count > self.max_boxes for count in counts):
            logging.warning(
                "data: fields.%s.max_boxes is %d; %d of %d records have more, up to %d; they lose some",
                *(self.context.name, self.max_boxes, too_many, len(counts), max(counts)),
            )

    def class_names(self):
        return self._labels.names if self._labels else None

    def zeros(self):
        rows = (*self.crop_shape[:-2], self.max_boxes)
        return dict(
            boxes=np.zeros((*rows, 4), np.float32),
            labels=np.zeros(rows, np.int32),
            valid=np.zeros(rows, bool),
        )

    def load(self, record, draws):
        boxes = self._boxes(record, draws)
        labels = self._numbers(record, len(boxes))
        if self.ignore_key:
            chosen = ~self._flags(record, len(boxes))
            boxes, labels = boxes[chosen], labels[chosen]
        return self.stacked([self._cut(boxes, labels, g.fractions) for g in self.geometries(draws)])

    def mirror(self, value, flips):
        left, top, right, bottom = jnp.moveaxis(value["boxes"], -1, 0)
        mirrored = jnp.stack([1 - right, top, 1 - left, bottom], -1)
        chosen = flips[..., None, None] & value["valid"][..., None]
        return value | dict(boxes=jnp.where(chosen, mirrored, value["boxes"]))

    @functools.cached_property
    def _labels(self):
        return sources.labels(self.context.source, self.class_key) if self.class_key else None

    def _boxes(self, record, draws):
        """float64[N, 4], (left, top, right, bottom) in fractions of the whole image."""
        value = required(record.get(self.key), self.key)
        try:
            boxes = np.asarray(value, float).reshape(-1, 4)
        except (TypeError, ValueError) as error:
            raise BadValue(f"{self.key!r} holds no boxes of four numbers") from error
        if not np.isfinite(boxes).all():
            raise BadValue(f"{self.key!r} holds a box that is not finite")
        boxes = xyxy(boxes, self.order)
        if not self.normalized:
            boxes = boxes / np.tile(draws.prepared[self.image].size, 2)
        return boxes

    def _numbers(self, record, count):
        """int32[N]."""
        if not self.class_key:
            return np.zeros(count, np.int32)
        labels = self._labels
        numbers = [labels.number_of(label) for label in records.values(record, self.class_key)]
        if len(numbers) != count:
            raise BadValue(f"{count} boxes, and {len(numbers)} classes under {self.class_key!r}")
        return np.array(numbers, np.int32)

    def _flags(self, record, count):
        """bool[N]: the boxes to leave out."""
        flags = [bool(flag) for flag in records.values(record, self.ignore_key)]
        if len(flags) != count:
            raise BadValue(f"{count} boxes, and {len(flags)} flags under {self.ignore_key!r}")
        return np.array(flags, bool)

    def _cut(self, boxes, labels, part):
        """The boxes of one crop, as `zeros` without [n]."""
        start, stop = np.array(part[:2]), np.array(part[2:])
        # A crop may be larger than the image, and a box must not reach into the padding.
        corners = (np.clip(boxes, 0, 1).reshape(-1, 2, 2) - start) / (stop - start)
        corners = np.clip(corners, 0, 1)
        pixels = (corners[:, 1] - corners[:, 0]) * self.crop_shape[-2:][::-1]
        indices = np.flatnonzero((pixels >= 1 - 1e-6).all(1))[: self.max_boxes]
        value = dict(
            boxes=np.zeros((self.max_boxes, 4), np.float32),
            labels=np.zeros(self.max_boxes, np.int32),
            valid=np.arange(self.max_boxes) < len(indices),
        )
        value["boxes"][: len(indices)] = corners[indices].reshape(-1, 4)
        value["labels"][: len(indices)] = labels[indices]
        return value


def xyxy(boxes: np.ndarray, order: str) -> np.ndarray:
    """float[N, 4] in one of BOX_ORDERS as (left, top, right, bottom)."""
    if order == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    if order == "xywh":
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return boxes


@dataclasses.dataclass(frozen=True)
class Mask(Spatial):
    """[H, W]: the class of each pixel, uint8 for up to 255 classes, else int32; `ignore` for no class, as
    outside the image.

    Resampled to the nearest pixel of the record's mask: a mean of two classes is no class.

    Args:
      image: the image field that it belongs to.
      key: where a record has an encoded image of one channel, or an array [H, W] or [H, W, 1], of any size
        with the image's aspect.
      num_classes: classes are numbers below it. Raises BadValue for other numbers, except `ignore`.
      ignore: the number for no class, in the record and in the batch.
      reduce_zero_label: whether 0 in the record is no class, and 1 the class 0, as in ADE20K's files.
    """

    num_classes: int
    ignore: int = 255
    reduce_zero_label: bool = False

    counter: ClassVar[str] = "replaced_masks"

    def __post_init__(self):
        if not self.num_classes >= 1 or 0 <= self.ignore < self.num_classes + self.reduce_zero_label:
            raise ValueError(
                f"num_classes is {self.num_classes} and ignore {self.ignore}; ignore must be no class"
            )

    @property
    def _dtype(self):
        return np.uint8 if self.num_classes <= 255 and 0 <= self.ignore <= 255 else np.int32

    def classes(self):
        return self.num_classes

    def zeros(self):
        return np.full(self.crop_shape, self.ignore, self._dtype)

    def load(self, record, draws):
        mask, first = self.plane(record, draws), int(self.reduce_zero_label)
        check_classes(mask, self.key, self.num_classes, self.ignore, first)
        parts = [
            _nearest(mask, g.fractions, self.crop_shape[-2:], self.ignore) for g in self.geometries(draws)
        ]
        return self.stacked([from_zero(part, self.ignore, first).astype(self._dtype) for part in parts])

    def mirror(self, value, flips):
        return jnp.where(flips[..., None, None], value[..., ::-1], value)


@dataclasses.dataclass(frozen=True)
class Depth(Spatial):
    """float32[H, W]: the depth of each pixel, 0 for unknown, as outside the image.

    Resampled to the nearest pixel of the record's map: a mean of an object's depth and its background's, or
    an unknown one, is the depth of neither. A crop that enlarges the image does not change depths.

    Args:
      image: the image field that it belongs to.
      key: where a record has an encoded image of one channel, 16 bits for most sets, or an array [H, W] or
        [H, W, 1], of any size with the image's aspect.
      scale: one unit of the record in units of the batch: 0.001 for millimetres to metres.
    """

    scale: float = 1.0

    counter: ClassVar[str] = "replaced_depths"

    def zeros(self):
        return np.zeros(self.crop_shape, np.float32)

    def load(self, record, draws):
        plane = self.plane(record, draws)
        parts = [_nearest(plane, g.fractions, self.crop_shape[-2:], 0) for g in self.geometries(draws)]
        # After the crop: an image may have many million pixels.
        return self.stacked([scaled_depth(part, self.scale) for part in parts])

    def mirror(self, value, flips):
        return jnp.where(flips[..., None, None], value[..., ::-1], value)


def check_classes(mask: np.ndarray, key: str, num_classes: int, ignore: int, first: int) -> None:
    """Raises BadValue unless all pixels are `ignore`, or numbers of classes that begin with `first`, 0 or 1;
    before 1, 0 is no class. key: of the record, which messages name."""
    known = (mask == ignore) | (mask >= 0) & (mask < num_classes + first)
    if not known.all():
        raise BadValue(f"{key!r} has a pixel of class {mask[~known].min()}")


def from_zero(mask: np.ndarray, ignore: int, first: int) -> np.ndarray:
    """int32[H, W]: checked numbers of classes that begin with `first`, as numbers that begin with 0."""
    mask = mask.astype(np.int32)  # 0 - 1 is no uint8
    return np.where((mask == ignore) | (mask < first), ignore, mask - first)


def scaled_depth(depth: np.ndarray, scale: float) -> np.ndarray:
    """float32[H, W]: a record's depth in units of the batch, 0 for what is not finite or not above 0."""
    depth = depth.astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def read_plane(record: records.Record, key: str, options: decode.Options) -> np.ndarray:
    """[H, W] of a record's encoded or plain array of one channel. Raises BadValue if it is none."""
    value = required(record.get(key), key)
    try:
        plane = decode.decode_array(value, options) if isinstance(value, bytes) else np.asarray(value)
    except ValueError as error:  # BadImage is one
        raise BadValue(f"{key!r}: {error}") from error
    if plane.dtype.kind not in "buif":
        raise BadValue(f"{key!r} holds no numbers")
    plane = plane[..., 0] if plane.ndim == 3 and plane.shape[-1] == 1 else plane
    if plane.ndim != 2 or not plane.size:
        raise BadValue(f"{key!r} has the shape {plane.shape}; it must have one channel")
    return plane


def _nearest(plane, part, shape, outside):
    """[*shape]: the pixels of [H, W] that lie nearest to the centres of the crop's pixels; `outside` for
    those beyond its edges."""
    left, top, right, bottom = part
    rows, columns = (
        np.floor((start + (np.arange(n) + 0.5) / n * (stop - start)) * length).astype(int)
        for start, stop, n, length in zip((top, left), (bottom, right), shape, plane.shape, strict=True)
    )
    inside = [(x >= 0) & (x < n) for x, n in zip((rows, columns), plane.shape, strict=True)]
    pixels = plane[np.clip(rows, 0, len(plane) - 1)[:, None], np.clip(columns, 0, plane.shape[1] - 1)]
    return np.where(inside[0][:, None] & inside[1], pixels, np.asarray(outside))
