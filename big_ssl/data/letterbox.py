"""Images of any size in one of a few static sizes, for dense predictions: resized with their aspect, and
padded at the right and at the bottom.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from big_ssl.data import bands
from big_ssl.data.preprocessing import FILTERS, parse_resize


class Letterboxed(NamedTuple):
    """An image in a static size. pixels: uint8[H, W, C]; sides: (height, width) of the image within it, in
    pixels; original: its (height, width) before it was resized."""

    pixels: np.ndarray
    sides: tuple[int, int]
    original: tuple[int, int]

    def example(self) -> dict[str, np.ndarray]:
        """One example of a batch: images: uint8[H, W, C]; sides, originals: float32[2]."""
        sides, originals = (np.array(x, np.float32) for x in (self.sides, self.original))
        return dict(images=self.pixels, sides=sides, originals=originals)


class Letterbox(NamedTuple):
    """Resizes the shorter side to `short`, or less if the longer one would exceed `long`.

    multiple: of which static sizes are multiples, such as a patch. filter: a key of preprocessing.FILTERS.
    fill: the padding, one value for all channels or one for each.
    """

    short: int
    long: int
    multiple: int = 32
    filter: str = "bilinear"
    fill: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, image_config: Mapping, long: int, multiple: int, mean: Sequence[float]) -> "Letterbox":
        """How a model's images are prepared.

        Args:
          image_config: a ModelConfig's; its image_size is the shorter side.
          long: the longest side, 0 for 5/3 of the shorter one, as 1333 is of 800 pixels.
          multiple: see the class.
          mean: of the model's normalisation, the colour of the padding.
        """
        short = image_config["image_size"]
        long, fill = long or round(short * 5 / 3), tuple(round(255 * x) for x in mean)
        return cls(short, long, multiple, parse_resize(image_config["resize"], short).filter, fill)

    @property
    def static_sizes(self) -> list[tuple[int, int]]:
        """All (height, width), by area: sides are the shortest, the longest, or one between them."""
        sides = sorted({self._whole(x) for x in (self.short, (self.short + self.long) / 2, self.long)})
        return sorted(itertools.product(sides, sides), key=lambda size: size[0] * size[1])

    @property
    def square(self) -> tuple[int, int]:
        """The static size that any image fits into."""
        return self.static_sizes[-1]

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to which an image of this size is resized; at least a pixel."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def static_size(self, height: int, width: int) -> tuple[int, int]:
        """The smallest of static_sizes for an image of this size."""
        sides = self.sides(height, width)
        return next(size for size in self.static_sizes if size[0] >= sides[0] and size[1] >= sides[1])

    def __call__(self, image, size: tuple[int, int] | None = None) -> Letterboxed:
        """Resizes and pads an image.

        Args:
          image: uint8[H, W, C], or what decode.decode_channels gives.
          size: the static size, None for the smallest.
        """
        image = bands.from_array(image) if isinstance(image, np.ndarray) else image
        width, height = image.size
        sides = self.sides(height, width)
        pixels = np.asarray(image.resize(sides[::-1], FILTERS[self.filter]))
        fill = np.broadcast_to(np.array(self.fill, np.uint8), pixels.shape[-1:])
        padded = np.tile(fill, (*(size or self.static_size(height, width)), 1))
        padded[: sides[0], : sides[1]] = pixels
        return Letterboxed(padded, sides, (height, width))

    def _whole(self, side):
        return int(-(-side // self.multiple) * self.multiple)
