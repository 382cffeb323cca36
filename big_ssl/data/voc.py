"""PASCAL VOC's annotations: an XML file of boxes and a PNG of classes beside each image."""

import xml.etree.ElementTree
from collections.abc import Sequence

import numpy as np

from big_ssl import io
from big_ssl.data import decode
from big_ssl.data.records import IMAGE, BadValue, Record

# The classes of PASCAL VOC 2007 to 2012, in the order of the numbers in its masks, from 1.
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)


class VocImages(Sequence[Record]):
    """Images of a folder in PASCAL VOC's layout: JPEGImages, Annotations, SegmentationClass, ImageSets.

    A record has IMAGE and, if its file is there, "mask", the encoded PNG whose palette indices are classes, 0
    the background and 255 none; and of its XML file "objects/bbox": float64[N, 4], (top, left, bottom, right)
    in fractions of the image, as in TFDS; "objects/label": N class names; "objects/is_difficult": bool[N]. A
    record whose XML file is missing, damaged or has a box without area is replaced as it is read.

    Args:
      path: the folder, such as VOCdevkit/VOC2012.
      image_set: the list of images, a file below ImageSets without its .txt: "Main/train" for boxes,
        "Segmentation/train" for masks.
      classes: names in the order of the numbers in masks, from 1.
      orientation, alpha: see decode.Options; annotations are those of the image as it is stored.

    Raises:
      FileNotFoundError: without the list.
      ValueError: if the list is empty.
    """

    def __init__(
        self,
        path: str,
        image_set: str = "Main/trainval",
        classes: Sequence[str] = CLASSES,
        orientation: str = "stored",
        alpha: str = "",
    ):
        self.decode_options = decode.Options(orientation, alpha)
        if not path:
            raise ValueError("voc: path is not set")
        self._folder, self._names = io.as_path(path), list(classes)
        listed = self._folder / "ImageSets" / f"{image_set}.txt"
        if not listed.exists():
            raise FileNotFoundError(f"voc: no file {listed}")
        # The lists of one class have a second column.
        self._images = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        if not self._images:
            raise ValueError(f"voc: {listed} has no images")

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        name = self._images[index]
        mask = self._folder / "SegmentationClass" / f"{name}.png"
        objects = _objects((self._folder / "Annotations" / f"{name}.xml").read_bytes())
        image = (self._folder / "JPEGImages" / f"{name}.jpg").read_bytes()
        return {IMAGE: image} | objects | ({"mask": mask.read_bytes()} if mask.exists() else {})

    def record_name(self, index: int) -> str:
        """The name of an image in the list."""
        return self._images[index]

    def label_names(self, key: str) -> list[str]:
        """The classes of "objects/label"; those of "mask" begin with the background."""
        if key not in ("objects/label", "mask"):
            raise ValueError(f"voc: {key!r} is no label; there are objects/label, mask")
        return ["background", *self._names] if key == "mask" else self._names


def _objects(content: bytes) -> dict:
    """The objects of an XML file. Raises BadValue for a file that can't be used."""
    try:
        root = xml.etree.ElementTree.fromstring(content)
        sides = np.array([float(root.findtext(f"size/{side}", "0")) for side in ("height", "width")])
        objects = root.findall("object")
        names = [element.findtext("name", "").strip() for element in objects]
        difficult = [element.findtext("difficult", "0").strip() == "1" for element in objects]
        corners = [
            [float(element.findtext(f"bndbox/{side}", "nan")) for side in ("ymin", "xmin", "ymax", "xmax")]
            for element in objects
        ]
    except (xml.etree.ElementTree.ParseError, ValueError) as error:
        raise BadValue(f"its XML file can't be read: {error}") from None  # the log names the root cause
    boxes = np.array(corners, float).reshape(-1, 4)
    boxes[:, :2] -= 1  # the first pixel is 1, and the last one belongs to the box
    if not (sides > 0).all():
        raise BadValue("its XML file states no size")
    if not (boxes[:, 2:] > boxes[:, :2]).all():  # of NaN as well
        raise BadValue("its XML file has a box without area")
    return {
        "objects/bbox": boxes / np.tile(sides, 2),
        "objects/label": names,
        "objects/is_difficult": np.array(difficult, bool),
    }
