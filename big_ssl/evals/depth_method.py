"""The method of a Predictor that a trained depth head provides."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_ssl.data import bands, preprocessing
from big_ssl.evals.batched import by_shape
from big_ssl.evals.capabilities import prediction
from big_ssl.evals.model_inputs import Images, opened_images
from big_ssl.evals.pixel_maps import resize_map
from big_ssl.evals.predictor_part import PredictorPart
from big_ssl.parallel import mesh as mesh_lib

_LARGEST_ASPECT = 16
# Images that go through the model at once, on each device: they are whole, and may be large.
_IMAGES = 4


class DepthMethod(PredictorPart):
    """`depth` of a Predictor; see there for the attributes."""

    def depth(self, images: Images, flip: bool = False, resize: bool = True) -> list[np.ndarray]:
        """The depth of every pixel.

        The whole image is read: it is resized as in evaluation, without the crop, and to a multiple of the
        encoder's stride, so that no pixel is cut off; its depths are resized back bilinearly.

        Args:
          images: uint8[B, H, W, 3], or other Images, of any sizes.
          flip: whether to average with the depth of the mirrored image, as DINOv2's evaluation does.
          resize: False reads images at their own size, rounded to a multiple of the stride.

        Returns:
          For each image float32[H, W], in the unit of the depths of training, metres in most sets.

        Raises:
          FileNotFoundError: for a path to no file.
          ValueError: for anything else but such images, and for a model without a depth head.
        """
        self._require("depth")
        how: Any = prediction(self.system, "depth")
        stride = max(self.system.encoders[how.call.encoder].pyramid_strides)
        config = self.image_config if resize else None
        sizes, resized = [], []
        for image in opened_images(images, self.channels):
            sizes.append(image.shape[:2])
            resized.append(whole_image(image, config, stride))
        maps = by_shape(lambda batch: self._depth_maps(batch, flip), resized)
        return [resize_map(depth, size) for depth, size in zip(maps, sizes, strict=True)]

    @property
    def depth_batch(self) -> int:
        """How many images `depth` computes at once."""
        return _IMAGES * mesh_lib.batch_shards(self._mesh)

    def _depth_maps(self, images, flip):
        """uint8[B, H, W, C] of one size -> float32[B, h, w], as coarse as the head's."""
        compute = functools.partial(self.compiled_head("depth"), self.variables)
        maps = self._in_batches(compute, images, self.depth_batch)
        if not flip:
            return maps
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        return (maps + self._depth_maps(mirrored, False)[:, :, ::-1]) / 2


def whole_image(image: np.ndarray, config: Mapping | None, stride: int) -> np.ndarray:
    """The whole image, resized as for evaluation but for the crop.

    Args:
      image: uint8[H, W, C].
      config: image_size and resize of a weights.format.ModelConfig; None keeps the size.
      stride: both sides become a multiple of it, at least one.

    Returns:
      uint8[H', W', C].
    """
    sides: Sequence[float] = image.shape[:2]
    filter_ = "bicubic"
    if config is not None:
        mode, side, filter_, _ = preprocessing.parse_resize(config["resize"], config["image_size"])
        shortest = min(sides)
        # A hair-thin image would take gigabytes with its aspect.
        scaled = [side * min(x / shortest, _LARGEST_ASPECT) for x in sides]
        sides = (side, side) if mode == "stretch" else scaled
    height, width = (max(1, round(side / stride)) * stride for side in sides)
    if (height, width) == image.shape[:2]:
        return image
    resized = bands.from_array(image).resize((width, height), preprocessing.FILTERS[filter_])
    return np.asarray(resized)
