"""Composited scenes: emoji drawings pasted on photographs, with exact boxes, masks and depths.

They stand in for an annotated set, which no package ships, in demos and tests. No result on them says
anything about COCO or ADE20K: call them composited wherever a number is reported.
"""

import functools
import importlib.resources
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
from PIL import Image

from big_ssl.data import decode
from big_ssl.data.emoji_drawings import EmojiPairs, is_held_out
from big_ssl.data.records import IMAGE, Record

# The drawing styles of each split: a test shows a style that training never does.
STYLES = {
    "train": ("noto", "noto-v1", "emojitwo", "fluent3d", "fluent-flat", "fxemoji"),
    "test": ("twemoji",),
}
CONCEPTS = ("seen", "unseen", "all")

# The default classes; those that emoji_drawings.is_held_out names are the unseen ones.
CLASSES = {
    "animals": (
        *("horse", "elephant", "koala", "camel", "octopus", "tropical fish", "whale", "turtle", "penguin"),
        *("rooster", "frog", "snail", "honeybee"),  # and unseen:
        *("tiger", "panda", "crocodile", "bird"),
    ),
    "food": (
        *(
            "grapes",
            "watermelon",
            "banana",
            "pineapple",
            "strawberry",
            "red apple",
            "eggplant",
            "ear of corn",
        ),
        *("hamburger",),  # and unseen:
        *("melon", "pizza", "french fries"),
    ),
    "vehicles": (
        *("bus", "fire engine", "bicycle", "locomotive", "tractor", "taxi"),  # and unseen:
        *("motorcycle", "train"),
    ),
}

# Where an object's alpha is at least this, it hides what is behind it.
_OPAQUE = 128
# An object's longer side, as a fraction of the scene's; log-uniform.
_SIDES = (0.16, 0.6)
# The part of an object that later ones may not hide.
_VISIBLE = 0.4
_ATTEMPTS = 10
# Of a uint8 mask: 0 is the background, and 255 no class.
_MOST_CLASSES = 254
# Depths in metres: of an object that fills the scene, and of the background's bottom and top rows. Every
# object is nearer than the background.
_DEPTH_OF_FULL_SIDE, _GROUND, _HORIZON = 0.6, 5.0, 10.0


class Object(NamedTuple):
    """A pasted cut-out. label: its class; depth: in metres; area: its opaque pixels before any is hidden."""

    label: str
    depth: float
    area: int


class CompositedScenes(Sequence[Record]):
    """Scenes composed deterministically from (seed, split, index); no two splits share a photograph.

    A record has IMAGE, an encoded image; "objects/bbox": float32[N, 4], (top, left, bottom, right) of the
    visible pixels in fractions of the image, as in TFDS; "objects/label": N class names; "mask": uint8[H, W],
    0 for the background, else 1 + the class's number; "depth": float32[H, W] in metres, inversely
    proportional to an object's size, on a ramp that is nearer at the bottom. Later objects hide earlier ones,
    but never most of one.

    Args:
      split: "train" or "test": of photographs and of styles.
      size: the side of a scene in pixels.
      objects: the least and the largest number of objects; fewer if there is no room.
      scenes: how many there are.
      concepts: "seen" has no class whose concept is held out of training, "unseen" only such classes, "all"
        both. Training has seen classes only.
      classes: labels of embedded drawings; () for CLASSES.
      styles: drawing styles; () for the split's of STYLES.
      seed: of all scenes.

    Raises:
      ValueError: naming the option.
    """

    def __init__(
        self,
        split: str = "train",
        size: int = 128,
        objects: tuple[int, int] = (1, 4),
        scenes: int = 2000,
        concepts: str = "seen",
        classes: Sequence[str] = (),
        styles: Sequence[str] = (),
        seed: int = 0,
    ):
        every = tuple(classes) or tuple(name for names in CLASSES.values() for name in names)
        _check(split, size, objects, scenes, concepts, every)
        self._size, self._objects, self._scenes = size, tuple(objects), scenes
        self._split, self._seed = split, [seed, list(STYLES).index(split)]
        drawings = EmojiPairs(tuple(styles) or STYLES[split], concepts)
        self._cutouts = _cutouts(drawings, every)
        # Seen classes come first, so that a class has the same number with and without the unseen ones.
        held_out = _held_out(every)
        self._names = sorted(every, key=lambda name: held_out[name])
        if concepts == "seen":
            self._names = [name for name in self._names if not held_out[name]]
        self._drawn = sorted(self._cutouts)
        if not self._drawn:
            raise ValueError(f"composited_scenes: none of the {len(every)} classes is {concepts}")
        self._photographs = _photographs(split)

    def __len__(self):
        return self._scenes

    def __getitem__(self, index):
        rng = np.random.default_rng([*self._seed, range(self._scenes)[index]])
        scene = self._background(rng)
        owners = np.zeros((self._size, self._size), np.uint8)  # 0: background; else the object's number
        objects: list[Object] = []
        for _ in range(rng.integers(self._objects[0], self._objects[1] + 1)):
            self._paste(scene, owners, objects, rng)
        buffer = io.BytesIO()
        scene.save(buffer, "bmp")  # in a hundredth of PNG's time
        numbers = [1 + self._names.index(o.label) for o in objects]
        depths = np.array([0, *(o.depth for o in objects)], np.float32)
        ramp = np.linspace(_HORIZON, _GROUND, self._size, dtype=np.float32)[:, None]
        return {
            IMAGE: buffer.getvalue(),
            "objects/bbox": _boxes(owners, len(objects)),
            "objects/label": [o.label for o in objects],
            "mask": np.array([0, *numbers], np.uint8)[owners],
            "depth": np.where(owners > 0, depths[owners], ramp),
        }

    def record_name(self, index: int) -> str:
        """The split and the index."""
        return f"{self._split} scene {index}"

    def summary(self) -> str:
        """How many scenes there are, and how many classes they show."""
        return f"{len(self):,} composited scenes of {len(self._drawn)} classes"

    def label_names(self, key: str) -> list[str]:
        """The classes of "objects/label", seen ones first; those of "mask" begin with the background."""
        if key not in ("objects/label", "mask"):
            raise ValueError(f"composited_scenes: {key!r} is no label; there are objects/label, mask")
        return ["background", *self._names] if key == "mask" else list(self._names)

    def _background(self, rng):
        photograph = self._photographs[rng.integers(len(self._photographs))]
        side = rng.uniform(0.4, 1) * min(photograph.size)
        left, top = rng.uniform(0, [length - side for length in photograph.size])
        box = (left, top, left + side, top + side)
        return photograph.resize((self._size, self._size), Image.Resampling.BILINEAR, box)

    def _paste(self, scene, owners, objects, rng):
        """Adds an object, unless it would hide too much of an earlier one at every place that is tried."""
        label = self._drawn[rng.integers(len(self._drawn))]
        cutout = self._cutouts[label][rng.integers(len(self._cutouts[label]))]
        side = np.exp(rng.uniform(*np.log(_SIDES)))
        shape = [max(2, round(side * self._size * length / max(cutout.size))) for length in cutout.size]
        cutout = cutout.resize(shape, Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        opaque = np.asarray(cutout)[..., 3] >= _OPAQUE
        areas = np.array([*(earlier.area for earlier in objects), opaque.sum()])
        for _ in range(_ATTEMPTS):
            left, top = (int(i) for i in rng.integers(0, [self._size - length + 1 for length in shape]))
            changed = owners.copy()
            changed[top : top + shape[1], left : left + shape[0]][opaque] = len(objects) + 1
            visible = np.bincount(changed.ravel(), minlength=len(areas) + 1)[1:]
            if (visible >= np.maximum(1, _VISIBLE * areas)).all():
                scene.paste(cutout, (left, top), cutout)
                owners[:] = changed
                objects.append(Object(label, _DEPTH_OF_FULL_SIDE / side, areas[-1]))
                return


def _check(split, size, objects, scenes, concepts, classes):
    if split not in STYLES:
        raise ValueError(f"composited_scenes: split is {split!r}; use {' or '.join(STYLES)}")
    if concepts not in CONCEPTS:
        raise ValueError(f"composited_scenes: no concepts {concepts!r}; there are {', '.join(CONCEPTS)}")
    if split == "train" and concepts != "seen":
        raise ValueError(f"composited_scenes: concepts is {concepts!r}; training has 'seen' alone")
    if size < 16 or scenes < 1:
        raise ValueError(f"composited_scenes: size is {size} and scenes {scenes}; at least 16 and 1")
    if not (len(objects) == 2 and 0 <= objects[0] <= objects[1] <= 100):
        raise ValueError(f"composited_scenes: objects is {tuple(objects)}; a rising pair within [0, 100]")
    if len(classes) > _MOST_CLASSES:
        raise ValueError(f"composited_scenes: {len(classes)} classes; a mask has at most {_MOST_CLASSES}")


def _boxes(owners, count):
    """float32[count, 4]: (top, left, bottom, right) of each object's pixels, in fractions."""
    boxes = np.zeros((count, 4), np.float32)
    for number in range(count):
        rows, columns = np.nonzero(owners == number + 1)
        boxes[number] = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    return boxes / np.float32(len(owners))


def _cutouts(drawings, classes):
    """{label: [RGBA image of each of its drawings, without its transparent margins]}."""
    cutouts: dict[str, list[Image.Image]] = {}
    wanted = set(classes)
    for index, row in enumerate(drawings.rows):
        if row["label"] in wanted:
            pixels = decode.decode_channels(drawings[index][IMAGE], np.asarray, channels=4)
            opaque = Image.fromarray(pixels[..., 3] >= _OPAQUE)
            cutouts.setdefault(row["label"], []).append(Image.fromarray(pixels).crop(opaque.getbbox()))
    return cutouts


def _held_out(classes):
    """{label: whether its concept is held out of training}."""
    concepts = {row["label"]: row["unified"] for row in EmojiPairs(STYLES["test"]).rows}
    if unknown := [name for name in classes if name not in concepts]:
        raise ValueError(f"composited_scenes: classes has {unknown[0]!r}, which is no drawing's label")
    return {name: is_held_out(concepts[name]) for name in classes}


@functools.cache
def _photographs(split):
    """The RGB photographs of a split."""
    file = importlib.resources.files("big_ssl.data") / "embedded" / "photographs.parquet"
    with file.open("rb") as stream:
        rows = pyarrow.parquet.read_table(stream).to_pylist()
    photographs = (row["webp"] for row in rows if row["split"] == split)
    return [decode.decode_rgb(encoded, lambda image: image) for encoded in photographs]
