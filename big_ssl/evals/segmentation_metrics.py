"""Confusion matrices of pixels, and what follows from them."""

import numpy as np


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """How many pixels of each class have each prediction.

    Args:
      truth: int[H, W], `ignore` for pixels that do not count.
      predicted: int[H, W], below `classes`.
      classes: C.
      ignore: see truth; by the truth alone, never by the prediction.

    Returns:
      int64[C, C], a row for each true class.
    """
    valid = truth != ignore
    pairs = truth[valid].astype(np.int64) * classes + predicted[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def segmentation_metrics(matrix: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """The metrics of a set's confusion matrix.

    Args:
      matrix: int64[C, C], summed over the set.

    Returns:
      (dict(miou, the mean IoU of the classes that the truth or a prediction has; pixel_accuracy, the fraction
      of pixels that are right; class_accuracy, its mean over the classes that the truth has),
      float64[C]: the IoU of each class, NaN for one that neither has).
    """
    right, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou, recall = right / (true + predicted - right), right / true
    metrics = dict(
        miou=float(np.nanmean(iou)),
        pixel_accuracy=float(right.sum() / matrix.sum()),
        class_accuracy=float(np.nanmean(recall)),
    )
    return metrics, iou
