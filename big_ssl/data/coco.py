"""COCO's annotations of objects: a JSON file of images, categories and boxes beside a folder of images."""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from big_ssl import io
from big_ssl.data import decode
from big_ssl.data.records import IMAGE, Record


class _Objects(NamedTuple):
    """The objects of all images, one after the other.

    boxes: float64[N, 4], (top, left, bottom, right) in fractions; labels: int[N]; crowd: bool[N]; area:
    float64[N], in pixels.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray


class CocoImages(Sequence[Record]):
    """Images with the boxes of a file in COCO's format of instances, images without any box included.

    A record has IMAGE; "image/id", its id in the file; "objects/bbox": float64[N, 4], (top, left, bottom,
    right) in fractions of the size that the file states, as in TFDS; "objects/label": int[N];
    "objects/is_crowd": bool[N]; "objects/area": float64[N], that of the file, in pixels. Classes are the
    file's categories in the order of their ids, which have gaps: `category_ids`. Segmentations are not read,
    and categories of stuff (isthing 0) are left out. A box that is not finite, has no area or lies outside
    its image is left out and counted in the summary, as are annotations of images that are not listed.

    Args:
      annotations: the JSON file.
      images: the folder that its file names are relative to.
      orientation, alpha: see decode.Options; boxes are those of the image as it is stored.

    Raises:
      FileNotFoundError: without the file or the folder.
      ValueError: naming the file, for content that can't be used: no JSON, two images of one id, a category
        that is not listed, a box that is not four numbers.
    """

    def __init__(self, annotations: str, images: str, orientation: str = "stored", alpha: str = ""):
        self.decode_options = decode.Options(orientation, alpha)
        content = _read(annotations, images)
        self._folder = io.as_path(images)
        try:
            self._images = _images(content["images"])
            categories = _categories(content["categories"])
            self._left_out: collections.Counter[str] = collections.Counter()
            self._objects, self._starts = self._sorted_objects(content["annotations"], categories)
        except (ValueError, TypeError) as error:
            raise ValueError(f"coco: {annotations}: {error}") from error
        things = [category for category in categories.values() if _is_thing(category)]
        self._names = [category["name"] for category in things]
        self.category_ids: list[int] = [category["id"] for category in things]

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        image, part = self._images[index], slice(*self._starts[range(len(self))[index] :][:2])
        objects = {key: value[part] for key, value in self._objects._asdict().items()}
        return {
            IMAGE: (self._folder / image["file_name"]).read_bytes(),
            "image/id": image["id"],
            "objects/bbox": objects["boxes"],
            "objects/label": objects["labels"],
            "objects/is_crowd": objects["crowd"],
            "objects/area": objects["area"],
        }

    def record_name(self, index: int) -> str:
        """The file of an image."""
        return self._images[index]["file_name"]

    def summary(self) -> str:
        """How many images, boxes and categories there are, and what is left out."""
        text = f"{len(self):,} images with {self._starts[-1]:,} boxes of {len(self._names)} categories"
        left_out = ", ".join(f"{count:,} {what}" for what, count in self._left_out.items())
        return text + (f"; left out: {left_out}" if left_out else "")

    def label_names(self, key: str) -> list[str]:
        """The names of the categories, which are those of "objects/label"."""
        if key != "objects/label":
            raise ValueError(f"coco: {key!r} is no label; there is objects/label")
        return self._names

    def counts(self, key: str) -> np.ndarray:
        """int[len(self)]: how many objects each record has under a key."""
        del key  # all have the same
        return np.diff(self._starts)

    def _sorted_objects(self, annotations, categories) -> tuple[_Objects, np.ndarray]:
        """The objects by image, and int[images + 1]: where those of each begin."""
        rows = {image["id"]: row for row, image in enumerate(self._images)}
        things = [i for i, category in categories.items() if _is_thing(category)]
        numbers = {category_id: number for number, category_id in enumerate(things)}
        objects = []
        for annotation in annotations:
            _check_annotation(annotation, categories)
            row, number = rows.get(annotation["image_id"]), numbers.get(annotation["category_id"])
            if row is None or number is None:
                self._left_out["boxes of no listed image" if row is None else "boxes of stuff"] += 1
                continue
            box, area = annotation["bbox"], annotation.get("area")
            area = area if isinstance(area, int | float) else box[2] * box[3]
            objects.append((row, number, annotation.get("iscrowd", 0), area, *box))
        table = np.array(objects, float).reshape(-1, 8)
        sides = np.array([(image["width"], image["height"]) for image in self._images], float)
        table = table[self._usable(table[:, 4:], sides[table[:, 0].astype(int)])]
        table = table[np.argsort(table[:, 0], kind="stable")]
        images = table[:, 0].astype(int)
        starts = np.cumsum([0, *np.bincount(images, minlength=len(self._images))])
        corners = np.stack([table[:, 4:6], table[:, 4:6] + table[:, 6:]], 1) / sides[images][:, None]
        boxes = corners[..., ::-1].reshape(-1, 4)
        return _Objects(boxes, table[:, 1].astype(int), table[:, 2] == 1, table[:, 3]), starts

    def _usable(self, boxes, sides):
        """bool[N]: the boxes, (x, y, width, height), that lie in images of these sides; counts the others."""
        start, stop = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        usable = np.ones(len(boxes), bool)
        for problem, fine in (
            ("that are not finite", np.isfinite(boxes)),
            ("without area", boxes[:, 2:] > 0),
            ("outside their image", (start < sides) & (stop > 0)),
        ):
            if count := (usable & ~fine.all(1)).sum():
                self._left_out[f"boxes {problem}"] = int(count)
            usable &= fine.all(1)
        return usable


def _read(annotations, images):
    """The content of the file; the folder is there as well."""
    for option, value in (("annotations", annotations), ("images", images)):
        if not value:
            raise ValueError(f"coco: {option} is not set")
    file = io.as_path(annotations)
    if not file.exists():
        raise FileNotFoundError(f"coco: no file {annotations}")
    if not io.as_path(images).is_dir():
        raise FileNotFoundError(f"coco: no folder {images}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"coco: {annotations} is no JSON file, or it is truncated: {error}") from error
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise ValueError(f"coco: {annotations} has no list of {key}, as COCO's instances have")
    return content


def _images(images):
    """The entries, with what is needed of them."""
    entries: dict = {}
    for image in images:
        _check_keys("image", image, ("id", "file_name", "width", "height"))
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("width", "height")):
            raise ValueError(f"image {image['id']} is {image['width']} x {image['height']} pixels")
        if (same := entries.get(image["id"])) is not None:
            raise ValueError(f"{same['file_name']} and {image['file_name']} both have the id {image['id']}")
        entries[image["id"]] = {key: image[key] for key in ("id", "file_name", "width", "height")}
    if not entries:
        raise ValueError("it has no images")
    return list(entries.values())


def _categories(categories):
    """{id: category}, by id."""
    for category in categories:
        _check_keys("category", category, ("id", "name"))
    by_id = {category["id"]: category for category in categories}
    if len(by_id) != len(categories):
        raise ValueError("two of its categories have one id")
    return dict(sorted(by_id.items()))


def _check_keys(what, entry, keys):
    if not isinstance(entry, Mapping):
        raise ValueError(f"{what} {entry!r} is no object")
    if missing := [key for key in keys if key not in entry]:
        raise ValueError(f"{what} {dict(entry)} has no {missing[0]}")


def _is_thing(category):
    return category.get("isthing", 1) == 1


def _check_annotation(annotation, categories):
    _check_keys("annotation", annotation, ("image_id", "category_id"))
    if "segments_info" in annotation:
        raise ValueError("it is of COCO's panoptic format; instances are read")
    number, category, box = (annotation.get(key) for key in ("id", "category_id", "bbox"))
    if category not in categories:
        raise ValueError(
            f"annotation {number} has the category_id {category}, which is none of the "
            f"{len(categories)} categories"
        )
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)):
        raise ValueError(f"annotation {number} has the bbox {box!r}; it must be four numbers")
