"""The error of a trained depth head on images with their depths."""

import functools
from collections.abc import Iterator

import numpy as np

from big_ssl.data import decode, sources
from big_ssl.data.fields.spatial import read_plane, scaled_depth
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import drawings, pixel_maps
from big_ssl.evals.depth_metrics import METRICS, best_constant_rmse, depth_metrics, valid_pixels
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.report_sections import EvalSection

# Images that the report shows.
_SHOWN = 6


class Depth(Evaluator):
    """Computes the metrics of each image, then their means over the images with any valid pixel.

    Args:
      data: the source.
      key: where its records have the depth: an encoded image of one channel or an array [H, W]. A prediction
        is resized to its size, where that is not the image's.
      scale: one unit of the record in units of the model, as in data.fields.spatial.Depth.
      min_depth, max_depth: depths of the truth between them count; predictions are clipped to them.
      eigen_crop: whether only NYUv2's central crop counts, of maps of 480 x 640 pixels.
      flip: whether to average with the prediction for the mirrored image.
      resize: as in Predictor.depth.
    """

    requires = ("depth",)

    def __init__(
        self,
        data: SourceConfig,
        key: str = "depth",
        scale: float = 1.0,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        eigen_crop: bool = False,
        flip: bool = False,
        resize: bool = True,
        *,
        name: str,
    ):
        if not 0 < min_depth < max_depth:
            raise ValueError(f"depth: min_depth is {min_depth}; it must be above 0 and below max_depth")
        self._source, self._name = sources.build(data), name
        self._key, self._scale = key, scale
        self._limits, self._eigen_crop = (min_depth, max_depth), eigen_crop
        self._options = dict(flip=flip, resize=resize)

    def metrics(self, predictor) -> dict[str, float]:
        """{"depth/<name>/<metric>": value}: those of depth_metrics, and constant_rmse, the lowest that one
        depth for all pixels reaches. Raises ValueError if no image has a valid pixel."""
        rows, moments = [], []
        for _, truth, depth in self._predictions(predictor, range(len(self._source))):
            valid = valid_pixels(truth, *self._limits, self._eigen_crop)
            rows.append(depth_metrics(np.clip(depth[valid], *self._limits), truth[valid]))
            if valid.any():
                moments.append(
                    [truth[valid].mean(dtype=np.float64), np.square(truth[valid], dtype=np.float64).mean()]
                )
        if not moments:
            raise ValueError(f"depth: no image has a depth between {self._limits[0]} and {self._limits[1]}")
        values = {metric: float(np.nanmean([row[metric] for row in rows])) for metric in METRICS}
        values["constant_rmse"] = best_constant_rmse(np.array(moments), self._limits[1])
        return {f"depth/{self._name}/{metric}": value for metric, value in values.items()}

    def sections(self, predictor) -> list[EvalSection]:
        """Images, their depths and predictions, in one scale of colours."""
        indices = pixel_maps.evenly_spaced(_SHOWN, len(self._source))
        shown = list(self._predictions(predictor, indices))
        text = (
            "Each row has an image, its depth and the prediction, in one scale of colours for all maps. Grey "
            "pixels have no known depth. The images are evenly spaced through the set."
        )
        name = f"depth_{self._name}"
        return [EvalSection(name, f"Depth: {self._name}", text, drawings.depth_figure(shown))]

    def _predictions(self, predictor, indices) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (image: uint8[H, W, C], truth: float32[h, w], 0 for unknown, prediction: float32[h, w])."""
        predict = functools.partial(predictor.depth, **self._options)
        read = (self._source, indices, predictor.depth_batch, self._truth, predict, predictor)
        for image, truth, depth in pixel_maps.predictions(*read, f"{self._name}: depths"):
            yield image, truth, pixel_maps.resize_map(depth, truth.shape)

    def _truth(self, image, record):
        del image
        options = sources.decode_options(self._source, decode.EVALUATION)
        return scaled_depth(read_plane(record, self._key, options), self._scale)
