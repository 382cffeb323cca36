"""The method of a Predictor that a trained segmentation head provides."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_ssl.data import bands, preprocessing
from big_ssl.evals.batched import by_shape
from big_ssl.evals.capabilities import prediction
from big_ssl.evals.model_inputs import Images, opened_images
from big_ssl.evals.pixel_maps import resize_map
from big_ssl.evals.predictor_part import PredictorPart
from big_ssl.parallel import mesh as mesh_lib

# The longer side is at most this times the shorter one: 2,048 and 512 pixels in ADE20K's protocol.
_LONGEST = 4
# Without windows the longer side is a multiple of the shorter by this, for a few static shapes.
_SIDE_STEPS = 8
# Images whose logits are in memory at once, and windows that go through the model at once, on each device.
_IMAGES, _WINDOWS = 8, 8


class SegmentMethod(PredictorPart):
    """`segment` of a Predictor; see there for the attributes."""

    def segment(
        self,
        images: Images,
        logits: bool = False,
        window: int | None = None,
        stride: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> list[np.ndarray]:
        """The class of every pixel.

        An image is resized, with its aspect, to the shorter side of evaluation times a scale, its longer side
        being at most four times that. The encoder reads it in overlapping windows, which all have one static
        size; where windows overlap, their logits are averaged. The logits are resized to the image. Of
        several scales, and of the mirrored image, the probabilities are averaged, as in MMSegmentation.

        Args:
          images: uint8[B, H, W, 3], or other Images, of any sizes.
          logits: whether the result is logits; of several scales, or with flip, logarithms of probabilities.
          window: the side of a window in pixels, at most the shorter side of the resized image; None for the
            shorter side of evaluation; 0 for none: the encoder reads the whole image at once.
          stride: between windows, None for two thirds of a window.
          scales: the factors. DINOv2's protocol has (1, 1.32, 1.73, 2.28, 3) with flip.
          flip: whether to average with the mirrored image.

        Returns:
          For each image int32[H, W], or float32[H, W, C] with logits.

        Raises:
          FileNotFoundError: for a path to no file.
          ValueError: for anything else but such images, windows that do not fit, and a model without a
            segmentation head.
        """
        self._require("segment")
        short, multiple = self.image_config["image_size"], self._multiple
        window = short if window is None else window
        stride = max(1, window * 2 // 3) if stride is None else stride
        if not scales or min(scales) <= 0 or not 0 <= window <= short * min(scales) or stride < 1:
            raise ValueError(
                f"segment: window is {window}, stride {stride} and scales {tuple(scales)}; a window is at "
                f"most the shorter side, {short} pixels times a scale, and a stride at least 1"
            )
        if window % multiple:  # a part of the window would not be read, and its logits would be stretched
            raise ValueError(
                f"segment: window is {window}; it must be a multiple of {multiple}, the encoder's stride"
            )
        read, results = list(opened_images(images, self.channels)), []
        for start in range(0, len(read), _IMAGES):
            part = read[start : start + _IMAGES]
            totals = self._averaged(part, window, stride, scales, flip)
            results += totals if logits else [x.argmax(-1).astype(np.int32) for x in totals]
        return results

    def _averaged(self, images, window, stride, scales, flip):
        """float32[H, W, C] of each image: logits, or of several variants logarithms of mean probabilities."""
        variants = list(itertools.product(scales, (False, True)[: 1 + flip]))
        totals: list[Any] = [0] * len(images)
        for scale, mirrored in variants:
            read = [image[:, ::-1] if mirrored else image for image in images]
            for i, x in enumerate(self._logits(read, scale, window, stride)):
                x = resize_map(x, images[i].shape[:2])
                x = x[:, ::-1] if mirrored else x
                totals[i] = totals[i] + (x if len(variants) == 1 else _softmax(x))
        return totals if len(variants) == 1 else [np.log(x / len(variants)) for x in totals]

    def _logits(self, images, scale, window, stride):
        """Yields for each image float32[h, w, C], the logits of its pixels at this scale."""
        pixels = [self._resized(image, scale, window) for image in images]
        places = [window_places(x.shape[:2], window, stride) if window else [(0, 0)] for x in pixels]
        parts = [
            x[top : top + (window or len(x)), left : left + (window or x.shape[1])]
            for x, corners in zip(pixels, places, strict=True)
            for top, left in corners
        ]
        logits = iter(self._in_static_shapes(parts))
        for x, corners in zip(pixels, places, strict=True):
            yield _mean_of_windows(list(itertools.islice(logits, len(corners))), corners, x.shape[:2], window)

    def _resized(self, image, scale, window):
        """uint8[H, W, C] -> uint8[h, w, C], see resized_sides."""
        size = self.image_config["image_size"]
        sides = resized_sides(image.shape[:2], round(size * scale), self._multiple, window)
        name = preprocessing.parse_resize(self.image_config["resize"], size).filter
        picture = bands.from_array(np.ascontiguousarray(image))
        return np.asarray(picture.resize(sides[::-1], preprocessing.FILTERS[name]))

    def _in_static_shapes(self, parts):
        """The head's logits of images of several sizes, those of one size together."""
        compute = functools.partial(self.compiled_head("segment"), self.variables)
        size = _WINDOWS * mesh_lib.batch_shards(self._mesh)
        return by_shape(lambda batch: self._in_batches(compute, batch, size), parts)

    @property
    def _multiple(self) -> int:
        """Of which the sides of a whole image are multiples: the encoder's coarsest stride."""
        how: Any = prediction(self.system, "segment")
        return max(self.system.encoders[how.call.encoder].pyramid_strides)


def _mean_of_windows(logits, corners, sides, window):
    """float32[*sides, C] of the logits [h, w, C] of windows at these corners, or of the whole image."""
    if not window:
        return resize_map(logits[0], sides)
    total = np.zeros((*sides, logits[0].shape[-1]), np.float32)
    counts = np.zeros((*sides, 1), np.float32)
    for (top, left), x in zip(corners, logits, strict=True):
        total[top : top + window, left : left + window] += resize_map(x, (window, window))
        counts[top : top + window, left : left + window] += 1
    return total / counts


def resized_sides(sides: Sequence[int], short: int, multiple: int, window: int) -> tuple[int, int]:
    """The (height, width) to which an image is resized.

    Args:
      sides: of the image.
      short: the shorter side; less, if the longer one would be over four times that.
      multiple: without windows both are multiples of it, and the longer one one of a few.
      window: no side is smaller; 0 for the whole image at once.
    """
    factor = min(short / min(sides), _LONGEST * short / max(sides))
    if window:
        height, width = (max(window, round(side * factor)) for side in sides)
        return height, width
    steps = [max(1, round(side * factor / short * _SIDE_STEPS)) * short / _SIDE_STEPS for side in sides]
    height, width = (max(1, round(side / multiple)) * multiple for side in steps)
    return height, width


def window_places(sides: Sequence[int], window: int, stride: int) -> list[tuple[int, int]]:
    """(top, left) of the windows that cover an image; the last of a row and column end at its edge."""
    rows, columns = (
        [min(i * stride, side - window) for i in range(-(-(side - window) // stride) + 1)] for side in sides
    )
    return list(itertools.product(rows, columns))


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)
