"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): CLIP's and SigLIP's image towers."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models import layer_stack
from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.models.transformer import (
    STACKS,
    AttentionPooling,
    Layer,
    Style,
    layer_norm,
    make_style,
)

__all__ = ["CLIP", "SIGLIP", "STACKS", "VARIANTS", "PatchEmbedding", "ViT"]

# Shapes by their usual names: ViT's own Table 1, and So400m of Alabdulmohsin et al. 2023 (2305.13035).
VARIANTS = {
    "B/32": dict(patch=32, width=768, depth=12, heads=12),
    "B/16": dict(patch=16, width=768, depth=12, heads=12),
    "L/16": dict(patch=16, width=1024, depth=24, heads=16),
    "L/14": dict(patch=14, width=1024, depth=24, heads=16),
    "H/14": dict(patch=14, width=1280, depth=32, heads=16),
    "So400m/14": dict(patch=14, width=1152, depth=27, heads=16, mlp_dim=4304),
}

# What a family's towers share. CLIP: arXiv 2103.00020 section 2.4 and OpenAI's weights.
CLIP = dict(
    pre_norm=True, patch_bias=False, activation="quick_gelu", epsilon=1e-5, pooling="cls", kernel_init="torch"
)
SIGLIP = dict(class_token=False, activation="gelu_tanh", epsilon=1e-6, pooling="map", kernel_init="glorot")


class PatchEmbedding(nn.Module):
    """Non-overlapping patches times a kernel. images: [B, H, W, 3] -> [B, H // patch, W // patch, D].

    What is left at the right and the bottom is dropped, as by an unpadded convolution.
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


class ViT(nn.Module):
    """The transformer over an image's patches; VARIANTS, CLIP and SIGLIP are its published options.

    image_size: of the position table, in pixels of a square image; for images of another size it
      is resized by models.position_embedding.
    class_token: whether one stands before the patches. pre_norm: whether a layer norm follows the
      position embedding (CLIP). patch_bias: of the patch embedding.
    activation, kernel_init: names in models.transformer; mlp_dim: None is 4 * width.
    pooling: "cls", the class token; "map", attention pooling (SigLIP); "mean", of the patches.
    drop_path: rate at the last layer; layer i of n has drop_path * i / (n - 1).
    scan, remat: of the layers, see models/layer_stack.py.

    images: float[B, H, W, 3], normalised -> dict(
      pooled: float32[B, D], patches: dtype[B, N, D]), both after the final norm, N row by row.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int | None = None
    image_size: int = 224
    class_token: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-6
    pooling: str = "cls"
    kernel_init: str = "glorot"
    drop_path: float = 0.0
    scan: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool = False):
        style = make_style(self)
        x = self._embed(images)
        if self.pre_norm:
            x = layer_norm("pre_norm", style)(x)
        x = layer_stack.apply_layers(
            functools.partial(Layer, style),
            "layer",
            range(self.depth),
            lambda layer, x, rate: layer(x, rate, train),
            x,
            self._drop_rates(),
            scan=self.scan,
            remat=self.remat,
        )
        x = layer_norm("final_norm", style)(x)
        patches = x[:, int(self.class_token) :]
        return dict(pooled=self._pool(x, patches, style).astype(jnp.float32), patches=patches)

    def _embed(self, images):
        """[B, N (+ 1), D]: the patches, the class token first, with their positions."""
        # PyTorch's default has a third of the variance of LeCun's rule.
        scale = 1 / 3 if self.kernel_init == "torch" else 1.0
        init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
        embed = PatchEmbedding(
            self.patch, self.width, self.patch_bias, init, self.dtype, name="patch_embedding"
        )
        x = embed(images)
        grid = x.shape[1:3]
        x = x.reshape(len(x), -1, self.width)
        small = nn.initializers.normal(self.width**-0.5)
        if self.class_token:
            token = self.param("class_token", small, (self.width,)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        side = self.image_size // self.patch
        shape = (int(self.class_token) + side**2, self.width)
        table = self.param("position_embedding", small, shape)
        return x + resize_position_embedding(table, (side, side), grid).astype(self.dtype)

    def _drop_rates(self):
        if not self.drop_path:
            return None
        return [self.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]

    def _pool(self, x, patches, style: Style):
        if self.pooling == "cls" and self.class_token:
            return x[:, 0]
        if self.pooling == "map":
            return AttentionPooling(style, name="pooling")(x)
        if self.pooling == "mean":
            return patches.astype(jnp.float32).mean(1)
        raise ValueError(
            f"vit: pooling is {self.pooling!r} and class_token {self.class_token}; "
            "use map, mean, or cls with a class token"
        )
