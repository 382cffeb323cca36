"""The patch embedding of a ViT."""

import flax.linen as nn
import jax.numpy as jnp


class PatchEmbedding(nn.Module):
    """Multiplies non-overlapping patches by a kernel. images: [B, H, W, 3] -> [B, H // patch, W // patch, D].

    Incomplete patches at the right and the bottom are dropped, as by an unpadded convolution.
    Raises ValueError for images without three channels, or smaller than a patch.
    """

    patch: int
    width: int
    bias: bool
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images):
        batch, height, width, channels = images.shape
        rows, columns = height // self.patch, width // self.patch
        if channels != 3 or not rows * columns:
            raise ValueError(
                f"vit: images are {list(images.shape)}; they must be [B, H, W, 3] with H and W "
                f"at least {self.patch}"
            )
        kernel = self.param("kernel", self.kernel_init, (self.patch, self.patch, 3, self.width))
        x = images[:, : rows * self.patch, : columns * self.patch].astype(self.dtype)
        x = x.reshape(batch, rows, self.patch, columns, self.patch, 3)
        x = jnp.einsum("brpcqi,pqio->brco", x, kernel.astype(self.dtype))
        if self.bias:
            x += self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        return x
