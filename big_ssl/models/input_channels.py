"""The first layer of encoders of images with other than three channels."""

import numpy as np


def check_images(name: str, shape: tuple[int, ...], channels: int, least: int) -> None:
    """Raises ValueError for images whose shape is not [B, H, W, channels] with sides of at least `least`.

    name: the encoder's, for the message.
    """
    if shape[-1] != channels or min(shape[1:3]) < least:
        raise ValueError(
            f"{name}: images are {list(shape)}; they must be [B, H, W, {channels}] with H and W "
            f"at least {least}"
        )


def adapted_kernel(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The kernel of a first layer on RGB for images of another number of channels.

    As timm's adapt_input_conv: for one channel the sum over the colours, which gives a grey image the
    features that it has as RGB; for n the colours' weights are repeated and scaled by 3 / n, which keeps the
    scale of the layer's outputs.

    Args:
      kernel: [h, w, 3, D].
      shape: (h, w, n, D).

    Returns:
      The kernel of that shape; None for another kind of shape.
    """
    if len(shape) != 4 or kernel.shape != (*shape[:2], 3, shape[3]):
        return None
    channels = shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeats = -(-channels // 3)
    return np.tile(kernel, (1, 1, repeats, 1))[:, :, :channels] * np.float32(3 / channels)
