"""Images of other sizes than the position tables of the small random models; needs no PyTorch."""

import numpy as np

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
# (height, width) for patches of 8 pixels: smaller and larger than the table of 3 x 3, not square, and with a
# rest that is no whole patch.
SIZES = [(8, 8), (16, 16), (32, 32), (56, 56), (24, 40), (48, 16), (27, 45)]


def random_images(size, count=2):
    """uint8[count, height, width, 3]."""
    return np.random.default_rng(size).integers(0, 256, (count, *size, 3), np.uint8)
