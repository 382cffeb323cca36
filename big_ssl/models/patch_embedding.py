"""The patch embedding of a ViT."""

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models import input_channels


class PatchEmbedding(nn.Module):
    """Multiplies non-overlapping patches by a kernel. images: [B, H, W, C] -> [B, H // patch, W // patch, D].

    Incomplete patches at the right and the bottom are dropped, as by an unpadded convolution.
    Raises ValueError for images without `channels` channels, or smaller than a patch.
    """

    patch: int
    width: int
    bias: bool
    channels: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images):
        batch, height, width, channels = images.shape
        rows, columns = height // self.patch, width // self.patch
        input_channels.check_images("vit", images.shape, self.channels, self.patch)
        kernel = self.param("kernel", self.kernel_init, (self.patch, self.patch, channels, self.width))
        x = images[:, : rows * self.patch, : columns * self.patch].astype(self.dtype)
        x = x.reshape(batch, rows, self.patch, columns, self.patch, channels)
        x = jnp.einsum("brpcqi,pqio->brco", x, kernel.astype(self.dtype))
        if self.bias:
            x += self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        return x
