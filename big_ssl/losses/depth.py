"""The scale-invariant log loss and the multi-scale gradient loss of depth maps, over valid pixels only."""

import jax.numpy as jnp

# DINOv2's code adds it to both depths before the logarithm; metres.
EPSILON = 1e-3
# The weight of the squared mean error beside the variance.
MEAN_WEIGHT = 0.15
# Rows and columns of the maps that the gradient loss compares are taken in these steps.
STEPS = (1, 2, 4, 6)


def log_errors(depth, truth):
    """The differences of logarithms, and where they count.

    Args:
      depth: float[..., H, W], predicted, above 0.
      truth: float[..., H, W], 0 where it is unknown.

    Returns:
      (float32[..., H, W], 0 at unknown pixels; bool[..., H, W]).
    """
    valid = truth > 0
    # Both branches of a `where` have a gradient, so neither logarithm may see a bad value.
    depth, truth = (jnp.where(valid, x.astype(jnp.float32), 1.0) for x in (depth, truth))
    return jnp.log(depth + EPSILON) - jnp.log(truth + EPSILON), valid


def scale_invariant_log_loss(errors, valid, warming_up):
    """SigLoss: sqrt(variance + 0.15 mean^2) of log errors (Eigen et al. 2014, arXiv 1406.2283; the root and
    the factor are those of AdaBins, arXiv 2011.14141, and DINOv2's code).

    Args:
      errors: float32[..., B, H, W], of `log_errors`. The B images' pixels have one mean and one variance.
      valid: bool[..., B, H, W].
      warming_up: bool[]; True leaves out the variance, as in DINOv2's first 100 steps.

    Returns:
      float32[...]; 0, with gradient 0, without valid pixels.
    """
    axes = (-3, -2, -1)
    count = valid.sum(axes, dtype=jnp.float32)
    mean = _over(_total(errors), count)
    centered = jnp.where(valid, errors - mean[..., None, None, None], 0.0)
    variance = _over(_total(centered**2), count - 1)  # the unbiased one, as torch.var's
    square = jnp.where(warming_up, 0.0, variance) + MEAN_WEIGHT * mean**2
    # The root of 0 has no gradient.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def gradient_loss(errors, valid):
    """The multi-scale gradient loss of MegaDepth (Li and Snavely 2018, arXiv 1804.00607, equation 4).

    For every step s, of every s-th row and column: the absolute difference of the errors at two pixels that
    are two rows, or two columns, apart, if both are valid; summed, and divided by the number of valid pixels.

    Args:
      errors, valid: as in `scale_invariant_log_loss`.

    Returns:
      float32[...], the sum over STEPS; 0 without valid pixels.
    """
    total = jnp.zeros(errors.shape[:-3])
    for step in STEPS:
        thinned, known = (x[..., ::step, ::step] for x in (errors, valid))
        rows = _differences(thinned[..., :-2, :], thinned[..., 2:, :], known[..., :-2, :] & known[..., 2:, :])
        columns = _differences(thinned[..., :-2], thinned[..., 2:], known[..., :-2] & known[..., 2:])
        total += _over(rows + columns, known.sum((-3, -2, -1), dtype=jnp.float32))
    return total


def _differences(a, b, both):
    return _total(jnp.where(both, jnp.abs(a - b), 0.0))


def _total(x):
    # Image by image: one float32 sum over the millions of pixels of a batch would round more.
    return x.sum((-2, -1)).sum(-1)


def _over(total, count):
    """total / count, 0 without a count; its gradient is finite."""
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), 0.0)
