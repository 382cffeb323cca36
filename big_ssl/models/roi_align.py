"""RoIAlign (He et al. 2017, arXiv 1703.06870, section 3): what is inside boxes, resampled to one size."""

import jax.numpy as jnp


def roi_align(image, boxes, size: int, samples: int = 2):
    """The inside of each box in size x size bins, each the mean of samples x samples bilinear samples.

    As torchvision's with aligned=True: the centre of pixel i is i + 0.5; samples more than a pixel outside
    the image are 0, others are clamped to its pixels. Sampling is a product with one matrix for rows and one
    for columns, without a gather.

    Args:
      image: float[H, W, C].
      boxes: float[N, 4], (left, top, right, bottom) in pixels of the image.
      size, samples: of the result, of a bin.

    Returns:
      float32[N, size, size, C].
    """
    image, boxes = jnp.asarray(image, jnp.float32), jnp.asarray(boxes, jnp.float32)
    height, width = image.shape[:2]
    columns = _sampling(boxes[:, 0], boxes[:, 2], size, samples, width)
    rows = _sampling(boxes[:, 1], boxes[:, 3], size, samples, height)
    return jnp.einsum("niy,njx,yxc->nijc", rows, columns, image)


def _sampling(start, stop, size, samples, length):
    """float32[N, size, length]: the weight of each pixel of an axis in each bin of each box."""
    fractions = (jnp.arange(size * samples) + 0.5) / (size * samples)
    places = start[:, None] + (stop - start)[:, None] * fractions - 0.5
    near = (places >= -1) & (places <= length)
    offsets = jnp.clip(places, 0, length - 1)[..., None] - jnp.arange(length)
    weights = jnp.maximum(1 - jnp.abs(offsets), 0) * near[..., None]
    return weights.reshape(len(start), size, samples, length).mean(2)
