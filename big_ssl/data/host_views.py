"""What the host makes of a picture: windows and crops of it, uint8. All else happens on the device."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from big_ssl.data import decode


class HostView(Protocol):
    """A frozen value. shape: of what `draw` gives; prepare: what is the same at every visit of the
    picture, and can be kept; draw: what is random."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def prepare(self, image: Image.Image) -> Any: ...

    def draw(self, prepared: Any, rng: np.random.Generator) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Window:
    """uint8[crop, crop, 3]: a random window of the resized picture.

    resize: fit "crop", the shorter side; "squash", both sides (data/decode.py). With resize = crop
    and fit "crop" it is CLIP's random square (arXiv 2103.00020, section 2.5); ALIGN squashes.
    Raises ValueError for another fit, and a crop larger than the picture.
    """

    resize: int
    crop: int
    fit: str = "crop"

    def __post_init__(self):
        if self.fit not in ("crop", "squash"):
            raise ValueError(f"fit is {self.fit!r}; use crop or squash")
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop is {self.crop}; it must be between 1 and resize, {self.resize}")

    @property
    def shape(self):
        return (self.crop, self.crop, 3)

    def prepare(self, image):
        return decode.resized(image, self.resize, self.fit)

    def draw(self, prepared, rng):
        return decode.random_crop(prepared, self.crop, rng)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """uint8[count, size, size, 3]: windows of random area and aspect, resized (Szegedy et al. 2015, arXiv
    1409.4842), as DINO's multi-crop takes them (Caron et al. 2021, arXiv 2104.14294, section 3.1).

    scale: the range of the area, as a share of the picture's; ratio: of width by height, uniform in its
    logarithm. Where ten attempts do not fit into the picture it is the largest middle window that does.
    Raises ValueError for ranges that are none.
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
        return image  # as it is: views share one, and an array would be copied back for each

    def draw(self, prepared, rng):
        boxes = [self._box(*prepared.size, rng) for _ in range(self.count)]
        side = (self.size, self.size)
        return np.stack([np.asarray(prepared.resize(side, Image.Resampling.BICUBIC, box)) for box in boxes])

    def _box(self, width, height, rng):
        """(left, top, right, bottom)."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = rng.integers(0, (width - w + 1, height - h + 1))
                return left, top, left + w, top + h
        low, high = self.ratio
        w, h = min(width, round(height * high)), min(height, round(width / low))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


HOST_VIEWS = {"window": Window, "random_resized_crop": RandomResizedCrop}


def build(config: Mapping[str, Mapping]) -> dict[str, HostView]:
    """{name: view} from a stream's config.data.views. Raises ValueError naming the view and its fault."""
    views = {}
    for name, options in config.items():
        rest = {key: value for key, value in options.items() if key != "kind"}
        try:
            views[name] = HOST_VIEWS[options["kind"]](**rest)
        except ValueError as error:
            raise ValueError(f"views.{name}: {error}") from error
    return views
