"""The error of a trained depth head on images with their depths."""

import contextlib
from collections.abc import Iterator

import numpy as np

from big_ssl.data import chunks, decode, sources
from big_ssl.data.fields.spatial import read_plane
from big_ssl.data.records import BadValue
from big_ssl.data.sources import SourceConfig
from big_ssl.evals import drawings
from big_ssl.evals.depth_method import resized_map
from big_ssl.evals.depth_metrics import METRICS, best_constant_rmse, depth_metrics, valid_pixels
from big_ssl.evals.evaluator import Evaluator
from big_ssl.evals.report_sections import EvalSection
from big_ssl.parallel import distributed

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
        count = min(_SHOWN, len(self._source))
        indices = [i * len(self._source) // count for i in range(count)]
        shown = list(self._predictions(predictor, indices))
        text = (
            "Each row has an image, its depth and the prediction, in one scale of colours for all maps. Grey "
            "pixels have no known depth. The images are evenly spaced through the set."
        )
        name = f"depth_{self._name}"
        return [EvalSection(name, f"Depth: {self._name}", text, drawings.depth_figure(shown))]

    def _predictions(self, predictor, indices) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (image: uint8[H, W, C], truth: float32[h, w], 0 for unknown, prediction: float32[h, w]).

        Every host reads all images: they are of any sizes, so that no batch of them can be split.
        """
        size = predictor.depth_batch
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        loaded = chunks.decoded(self._source, lambda record: record, np.asarray, batches, predictor.channels)
        with contextlib.closing(loaded):
            for batch in predictor.progress(batches, len(batches), f"{self._name}: depths"):
                with distributed.raise_on_all_hosts(ValueError):
                    images, records = zip(*next(loaded), strict=True)
                    truths = [self._truth(*pair) for pair in zip(batch, records, strict=True)]
                depths = predictor.depth(list(images), **self._options)
                for image, truth, depth in zip(images, truths, depths, strict=True):
                    yield image, truth, resized_map(depth, truth.shape)

    def _truth(self, index, record):
        options = sources.decode_options(self._source, decode.EVALUATION)
        try:
            depth = read_plane(record, self._key, options)
        except BadValue as error:
            raise ValueError(f"data: {sources.record_name(self._source, index)}: {error}") from error
        depth = depth.astype(np.float32) * np.float32(self._scale)
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
