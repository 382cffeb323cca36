"""How Swin and CoSwin make their first map of an image, and each next one of half the size."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.models.patch_embedding import PatchEmbedding

_init = nn.initializers.normal(0.02)
# Swin's convolution keeps PyTorch's default, of this variance.
_conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "normal")

# Pixels along the side of a patch, the stride of the first map.
PATCH = 4


class PatchNorm(nn.Module):
    """Swin's first map: patches of 4 x 4 pixels, linearly embedded, and a layer norm.

    The image is padded with zeros at the right and the bottom to whole patches. images: [B, H, W, C] ->
    [B, H / 4, W / 4, width], both rounded up.
    """

    width: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images):
        images = _padded(images, PATCH)
        embed = PatchEmbedding(
            PATCH, self.width, True, images.shape[-1], _conv_init, self.dtype, name="projection"
        )
        x = embed(images)
        return _norm(self)(x)


class PatchMerging(nn.Module):
    """Swin's next map: 2 x 2 positions concatenated, a layer norm and a linear layer, in this order, or with
    norm_last (Swin V2) in the other.

    An odd map is padded with zeros. [B, H, W, C] -> [B, H / 2, W / 2, 2 C], both rounded up.
    """

    epsilon: float
    dtype: jnp.dtype
    norm_last: bool = False

    @nn.compact
    def __call__(self, x):
        x = _padded(x, 2)
        batch, height, width, channels = x.shape
        # Column by column, as published.
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        reduce = nn.Dense(2 * channels, use_bias=False, kernel_init=_init, dtype=self.dtype, name="reduction")
        return _norm(self)(reduce(x)) if self.norm_last else reduce(_norm(self)(x))


class ConvEmbedding(nn.Module):
    """CvT's convolutional embedding (Wu et al. 2021, arXiv 2103.15808): a strided convolution of overlapping
    patches with `padding` zeros on all sides, and a layer norm. width: None for twice the input's.

    [B, H, W, C] -> [B, (H + 2 padding - kernel) // stride + 1, likewise of W, width].
    """

    kernel: int
    stride: int
    padding: int
    epsilon: float
    dtype: jnp.dtype
    width: int | None = None

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        width = self.width or 2 * channels
        kernel = self.param("kernel", _init, (self.kernel, self.kernel, channels, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return _norm(self)(x + bias.astype(self.dtype))


def _padded(x, multiple):
    """x: [B, H, W, C] with zeros at the bottom and the right, H and W multiples."""
    height, width = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))


def _norm(module):
    return nn.LayerNorm(epsilon=module.epsilon, dtype=module.dtype, name="patch_norm")
