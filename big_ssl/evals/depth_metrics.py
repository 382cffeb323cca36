"""The metrics of one depth map, as published for NYUv2 and KITTI, in float64."""

import numpy as np

# Rows and columns of NYUv2's 480 x 640 images that are evaluated (Eigen et al. 2014, arXiv 1406.2283).
EIGEN_CROP = (slice(45, 471), slice(41, 601))
EIGEN_SHAPE = (480, 640)
METRICS = ("rmse", "rmse_log", "abs_rel", "sq_rel", "log10", "silog", "delta1", "delta2", "delta3")


def valid_pixels(truth: np.ndarray, min_depth: float, max_depth: float, eigen_crop: bool) -> np.ndarray:
    """The pixels that are evaluated.

    Args:
      truth: float[H, W], 0 where it is unknown.
      min_depth, max_depth: depths between them count, without the limits themselves.
      eigen_crop: whether only EIGEN_CROP counts.

    Returns:
      bool[H, W].

    Raises:
      ValueError: for the crop of a map of another size than 480 x 640.
    """
    valid = (truth > min_depth) & (truth < max_depth)
    if not eigen_crop:
        return valid
    if truth.shape != EIGEN_SHAPE:
        raise ValueError(
            f"eigen_crop is of maps of 480 x 640 pixels; there is one of {truth.shape[0]} x {truth.shape[1]}"
        )
    inside = np.zeros(truth.shape, bool)
    inside[EIGEN_CROP] = True
    return valid & inside


def depth_metrics(depth: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The metrics over the pixels of one image.

    Args:
      depth: float[N], predicted, above 0.
      truth: float[N], above 0.

    Returns:
      {metric: value} with the keys METRICS. rmse in the depths' unit; rmse_log of natural logarithms; silog,
      the standard deviation of the log errors, in hundredths, as KITTI's; delta1 to delta3, the fractions of
      pixels within a factor of 1.25, 1.25^2 and 1.25^3. NaN without pixels.
    """
    if not len(truth):
        return dict.fromkeys(METRICS, np.nan)
    depth, truth = depth.astype(np.float64), truth.astype(np.float64)
    errors, log_errors = depth - truth, np.log(depth) - np.log(truth)
    factors = np.exp(np.abs(log_errors))
    return dict(
        rmse=np.sqrt((errors**2).mean()),
        rmse_log=np.sqrt((log_errors**2).mean()),
        abs_rel=(np.abs(errors) / truth).mean(),
        sq_rel=(errors**2 / truth).mean(),
        log10=np.abs(log_errors).mean() / np.log(10),
        silog=100 * log_errors.std(),
        **{f"delta{i}": (factors < 1.25**i).mean() for i in (1, 2, 3)},
    )


def best_constant_rmse(moments: np.ndarray, max_depth: float) -> float:
    """The lowest mean RMSE that one depth for all pixels of all images reaches.

    Args:
      moments: float64[images, 2], the mean depth of each image, and its mean square.
      max_depth: 1,000 depths up to it are tried.
    """
    depths = np.linspace(0, max_depth, 1_001)[1:, None]
    squares = depths**2 - 2 * depths * moments[:, 0] + moments[:, 1]
    return float(np.sqrt(np.maximum(squares, 0)).mean(1).min())
