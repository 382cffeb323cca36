"""Crops of an image on the host: one draw of their boxes serves all fields that belong to the image."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from big_ssl.data import decode

# left, top, right, bottom.
Box = tuple[float, float, float, float]
RESIZE_MODES = ("crop", "stretch")


class Prepared(NamedTuple):
    """The deterministic part of an image's transform, which can be cached.

    pixels: uint8[H, W, 3] or a Pillow image; region: the part of the whole image that they show, in fractions
    of its width and height; size: the whole image's (width, height).
    """

    pixels: np.ndarray | Image.Image
    region: Box
    size: tuple[int, int]


class Geometry(NamedTuple):
    """The box of one crop, in pixels of the prepared image and in fractions of the whole image's sides.

    The fractions locate the crop in an annotation of any resolution. They are beyond 1 where the crop is
    padded. RandomScaleCrop's pixels are those of the resized image.
    """

    pixels: tuple[int, int, int, int]
    fractions: Box


class Crop(Protocol):
    """A frozen value. shape: of what `render` returns; the axes before [H, W, 3] count the crops."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def prepare(self, image: Image.Image) -> Prepared:
        """Does all that needs no random numbers."""
        ...

    def draw(self, prepared: Prepared, rng: np.random.Generator) -> Sequence[Geometry]:
        """Draws the box of each crop."""
        ...

    def render(self, prepared: Prepared, geometries: Sequence[Geometry]) -> np.ndarray:
        """Returns the crops' pixels: uint8, of `shape`."""
        ...


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """uint8[size, size, 3]: a random square of the resized image.

    resize_mode "crop" resizes the shorter side to `resize`, "stretch" both sides. With resize = size and
    "crop" it is CLIP's random square (arXiv 2103.00020, section 2.5); ALIGN stretches. Raises ValueError for
    another mode, and if size exceeds resize.
    """

    resize: int
    size: int
    resize_mode: str = "crop"

    def __post_init__(self):
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode is {self.resize_mode!r}; use crop or stretch")
        if not 1 <= self.size <= self.resize:
            raise ValueError(f"size is {self.size}; it must be between 1 and resize, {self.resize}")

    @property
    def shape(self):
        return (self.size, self.size, 3)

    def prepare(self, image):
        return Prepared(*decode.resized(image, self.resize, self.resize_mode), image.size)

    def draw(self, prepared, rng):
        height, width = prepared.pixels.shape[:2]
        top, left = (int(i) for i in rng.integers(0, [height - self.size + 1, width - self.size + 1]))
        return (_geometry((left, top, left + self.size, top + self.size), (width, height), prepared.region),)

    def render(self, prepared, geometries):
        ((left, top, right, bottom), _), = geometries  # fmt: skip
        return prepared.pixels[top:bottom, left:right]


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """uint8[count, size, size, 3]: parts of random area and aspect, resized (Szegedy et al. 2015, arXiv
    1409.4842), as in DINO's multi-crop (Caron et al. 2021, arXiv 2104.14294, section 3.1).

    scale: the range of the area, as a fraction of the image's; ratio: of width by height, uniform in its
    logarithm. If ten attempts do not fit into the image, the largest central part that does is taken.
    Raises ValueError for invalid ranges.
    """

    size: int
    scale: tuple[float, float]
    count: int = 1
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self):
        if self.size < 1 or self.count < 1:
            raise ValueError(f"size is {self.size} and count {self.count}; both must be at least 1")
        for name, (low, high), limit in (("scale", self.scale, 1), ("ratio", self.ratio, math.inf)):
            if not 0 < low <= high <= limit:
                raise ValueError(f"{name} is {(low, high)}; it must be a rising pair within (0, {limit}]")

    @property
    def shape(self):
        return (self.count, self.size, self.size, 3)

    def prepare(self, image):
        # Unchanged: the image fields of a record share it, and an array would be copied back for each.
        return Prepared(image, (0.0, 0.0, 1.0, 1.0), image.size)

    def draw(self, prepared, rng):
        size = prepared.pixels.size
        boxes = [self._box(*size, rng) for _ in range(self.count)]
        return tuple(_geometry(box, size, prepared.region) for box in boxes)

    def render(self, prepared, geometries):
        side = (self.size, self.size)
        crops = (
            prepared.pixels.resize(side, Image.Resampling.BICUBIC, geometry.pixels) for geometry in geometries
        )
        return np.stack([np.asarray(crop) for crop in crops])

    def _box(self, width, height, rng):
        """(left, top, right, bottom)."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = (int(i) for i in rng.integers(0, (width - w + 1, height - h + 1)))
                return left, top, left + w, top + h
        low, high = self.ratio
        w, h = min(width, round(height * high)), min(height, round(width / low))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class RandomScaleCrop:
    """uint8[size, size, 3]: a random part of the image at a random scale, padded at the right and at the
    bottom where it is smaller.

    The image is resized, with its aspect, to the largest size whose shorter side is at most `short` and whose
    longer one is at most `long`, both times a factor that is uniform in `scale`. With short = long = 0, for
    size, it is large-scale jitter (Ghiasi et al. 2021, arXiv 2012.07177, section 3.1: scale (0.1, 2)); with
    size = short = 512, long = 2048 and scale (0.5, 2) it is the crop of ADE20K's published settings. Boxes
    end at the image's edge, and the padding has no class and no depth.

    Args:
      size: of the crop.
      scale: the range of the factor.
      short, long: in pixels; 0 for size.
      fill: the value of padding, of all channels.

    Raises:
      ValueError: naming an invalid option.
    """

    size: int
    scale: tuple[float, float] = (0.1, 2.0)
    short: int = 0
    long: int = 0
    fill: int = 128

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale is {tuple(self.scale)}; it must be a rising pair above 0")
        if not 0 <= self.short <= self.long:
            raise ValueError(f"short is {self.short}; it must lie between 0 and long, {self.long}")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill is {self.fill}; it must lie between 0 and 255")

    @property
    def shape(self):
        return (self.size, self.size, 3)

    def prepare(self, image):
        return Prepared(image, (0.0, 0.0, 1.0, 1.0), image.size)

    def draw(self, prepared, rng):
        sides = np.array(prepared.pixels.size)
        short, long = self.short or self.size, self.long or self.size
        factor = rng.uniform(*self.scale) * min(short / sides.min(), long / sides.max())
        resized = np.maximum(1, np.rint(sides * factor).astype(int))
        start = rng.integers(0, np.maximum(resized - self.size, 0) + 1)
        box = np.concatenate([start, start + self.size])
        return (Geometry(tuple(box.tolist()), tuple((box / np.tile(resized, 2)).tolist())),)

    def render(self, prepared, geometries):
        ((left, top, right, bottom), fractions), = geometries  # fmt: skip
        width, height = prepared.pixels.size
        # The side of the whole resized image, of which the crop may lie beyond the edge.
        across, down = round(right / fractions[2]), round(bottom / fractions[3])
        shown = (min(right, across) - left, min(bottom, down) - top)
        end = ((left + shown[0]) / across * width, (top + shown[1]) / down * height)
        box = (fractions[0] * width, fractions[1] * height, *np.minimum(end, (width, height)).tolist())
        pixels = np.asarray(prepared.pixels.resize(shown, Image.Resampling.BICUBIC, box))
        canvas = np.full((self.size, self.size, pixels.shape[-1]), self.fill, np.uint8)
        canvas[: shown[1], : shown[0]] = pixels
        return canvas


CROPS = {
    "random_crop": RandomCrop,
    "random_resized_crop": RandomResizedCrop,
    "random_scale_crop": RandomScaleCrop,
}


def build(config: Mapping) -> Crop:
    """The crop that config["kind"] names, built from the other keys. Raises ValueError for invalid ones."""
    if config.get("kind") not in CROPS:
        raise ValueError(f"kind is {config.get('kind')!r}; there are {', '.join(CROPS)}")
    return CROPS[config["kind"]](**{key: value for key, value in config.items() if key != "kind"})


def _geometry(pixels, size, region):
    """The Geometry of a box of pixels of a prepared image of this (width, height)."""
    left, top, right, bottom = region
    (width, height), spans = size, (right - left, bottom - top)
    xs = [left + x / width * spans[0] for x in pixels[::2]]
    ys = [top + y / height * spans[1] for y in pixels[1::2]]
    return Geometry(pixels, (xs[0], ys[0], xs[1], ys[1]))
