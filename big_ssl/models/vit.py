"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): the image encoders of CLIP and SigLIP,
the backbones of iBOT, DINOv2 and DINOv3."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.models import layer_stack
from big_ssl.models.attention import attention_weights
from big_ssl.models.encoder import TransformerEncoder
from big_ssl.models.patch_embedding import PatchEmbedding
from big_ssl.models.position_embedding import (
    RESIZES,
    resize_position_embedding,
    resize_square_table,
)
from big_ssl.models.random_subsets import random_subsets, take
from big_ssl.models.rotary import Rope, apply_rope, rope_sincos
from big_ssl.models.transformer import (
    AttentionPooling,
    Layer,
    LayerConfig,
    layer_config,
    layer_norm,
    lookup,
)

# Shapes by their usual names: ViT's own Table 1; So400m of Alabdulmohsin et al. 2023 (2305.13035);
# S of Touvron et al. 2021 (2012.12877); g of DINOv2, not the g of other papers.
VARIANTS: dict[str, dict[str, Any]] = {
    "S/16": dict(patch=16, width=384, depth=12, heads=6),
    "S/14": dict(patch=14, width=384, depth=12, heads=6),
    "B/32": dict(patch=32, width=768, depth=12, heads=12),
    "B/16": dict(patch=16, width=768, depth=12, heads=12),
    "B/14": dict(patch=14, width=768, depth=12, heads=12),
    "L/16": dict(patch=16, width=1024, depth=24, heads=16),
    "L/14": dict(patch=14, width=1024, depth=24, heads=16),
    "H/14": dict(patch=14, width=1280, depth=32, heads=16),
    "So400m/14": dict(patch=14, width=1152, depth=27, heads=16, mlp_dim=4304),
    "g/14": dict(patch=14, width=1536, depth=40, heads=24, feed_forward="swiglu"),
}

# Options of all encoders of a family. CLIP: arXiv 2103.00020 section 2.4 and OpenAI's weights.
CLIP = dict(
    pre_norm=True, patch_bias=False, activation="quick_gelu", epsilon=1e-5, pooling="cls", kernel_init="torch"
)
SIGLIP = dict(class_token=False, activation="gelu_tanh", epsilon=1e-6, pooling="map", kernel_init="glorot")
# DINO and, with its mask token, iBOT (arXiv 2111.07832); DINOv2 (arXiv 2304.07193).
DINO = dict(epsilon=1e-6, pooling="cls", kernel_init="dino", mask_token=True, position_resize="dinov2")
DINOV2 = DINO | dict(kernel_init="dinov2", layer_scale=1e-5, drop_path_mode="subset")
# DINOv3 (arXiv 2508.10104): its public models' patches have rotary positions, its keys no bias.
DINOV3 = DINOV2 | dict(qkv_bias="qv", registers=4, rope_base=100.0, rope_rescale=2.0, epsilon=1e-5)

# Initial standard deviations of (the class token and registers, the position table), if they are not
# width ** -0.5; a mask token starts at zero.
INIT_STD = {"dino": (0.02, 0.02), "dinov2": (1e-6, 0.02)}
# Kernel inits whose patch embedding has PyTorch's default, a third of the variance of LeCun's rule.
_PYTORCHS_PATCHES = ("torch", "dino", "dinov2")


class ViT(TransformerEncoder):
    """The transformer over an image's patches; VARIANTS, CLIP, SIGLIP, DINO... are published options.

    image_size: of the position table, in pixels of a square image; for images of another size it
      is resized by models.position_embedding.
    channels: of the images.
    class_token: whether one stands before the patches. pre_norm: whether a layer norm follows the
      position embedding (CLIP). patch_bias: of the patch embedding.
    position_resize: how, a name in models.position_embedding.RESIZES.
    rope_base: a number for rotary embeddings instead of that table (models/rotary.py; 100 in DINOv3);
      rope_dtype: what their periods are rounded to; rope_rescale: in training all positions are multiplied
      by a random factor in [1 / rope_rescale, rope_rescale]. rope_side: rotary embeddings of that reference
      grid besides the table (Perception Encoder); None for DINOv3's.
    registers: the number of learned tokens without a position after the class token
      (Darcet et al. 2024, arXiv 2309.16588).
    mask_token: whether there is one to replace masked patches (iBOT).
    activation, feed_forward, kernel_init: names in models.transformer; mlp_dim: None is 4 * width
      for "mlp", and by DINOv2's rule for "swiglu".
    qkv_bias: the initials of the projections query, key and value that have a bias.
    layer_scale: the initial value of LayerScale; None for no LayerScale.
    pooling: "cls", the class token; "map", attention pooling (SigLIP), with pooling_heads and pooling_mlp_dim
      if they are not the layers'; "mean", of the patches.
    drop_path, drop_path_mode: "linear", each example skips a branch of layer i of n with probability
      drop_path * i / (n - 1); "subset", all layers compute their branches for a fraction 1 - drop_path
      of the batch (DINOv2), chosen within each of drop_path_groups groups of neighbours: if the number of
      groups is a multiple of the batch's shards, no example leaves its device.
    patch_dropout: the fraction of the patches that is dropped in training (FLIP, arXiv 2212.00794).
    attention: its implementation, see models/attention.py. scan, remat: of the layers, see
      models/layer_stack.py.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int | None = None
    image_size: int = 224
    channels: int = 3
    class_token: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    position_resize: str = "bicubic_antialias"
    rope_base: float | None = None
    rope_rescale: float = 1.0
    rope_dtype: str = "float32"
    rope_side: int | None = None
    registers: int = 0
    mask_token: bool = False
    activation: str = "gelu"
    feed_forward: str = "mlp"
    qkv_bias: str = "qkv"
    layer_scale: float | None = None
    epsilon: float = 1e-6
    pooling: str = "cls"
    pooling_heads: int | None = None
    pooling_mlp_dim: int | None = None
    kernel_init: str = "glorot"
    drop_path: float = 0.0
    drop_path_mode: str = "linear"
    drop_path_groups: int = 1
    patch_dropout: float = 0.0
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    takes_several_sizes = True
    first_kernel = "patch_embedding/kernel"
    has_attention_maps = True

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Encoder; "cls" only with a class token, "registers" only with registers, "pyramid", the map of
        all patches, only without patch dropout."""
        optional = dict(cls=self.class_token, registers=self.registers, pyramid=not self.patch_dropout)
        return ("pooled", *(name for name, there in optional.items() if there), "patches", "layers")

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """The patch's side: there is one map."""
        return () if self.patch_dropout else (self.patch,)

    def resize_params(self, name, array, shape):
        """The position table, whose first row is the class token's, if there is one."""
        if name != "position_embedding":
            return super().resize_params(name, array, shape)
        return resize_square_table(array, shape, int(self.class_token), self.position_resize)

    @nn.compact
    def __call__(self, images, train: bool = False, mask=None, intermediate: Sequence[int] = ()):
        """Encodes images.

        Args:
          images: float[B, H, W, C], normalised; or a tuple of such arrays with several B, H and W, which
            share each layer's weights; mask is then a tuple too, of masks and None, and so is the result.
          train: whether to drop paths and patches, and to rescale rotary embeddings.
          mask: bool[B, N], the patches that the mask token replaces, before positions are added.
          intermediate: indices of layers, negative ones from the end, whose outputs are returned as well.

        Returns:
          dict(pooled: float32[B, D], patches: dtype[B, N, D]), both after the final norm, N row by row, in
          training without the dropped ones; pyramid: a tuple of dtype[B, H // patch, W // patch, D], the
          same patches as one map, if none are ever dropped; cls: float32[B, D] if there is a class token;
          registers: dtype[B, R, D] if there are any; and with n intermediate layers their outputs after the
          same norm:
          layers: dict(cls: float32[n, B, D], registers: [n, B, R, D], patches: [n, B, N, D]), likewise.

        Raises:
          ValueError: for options, images and masks that do not fit.
        """
        config = layer_config(self, self.feed_forward, self.layer_scale, self.qkv_bias)
        sizes = images if isinstance(images, tuple) else (images,)
        masks = mask if isinstance(mask, tuple) else (mask,) * len(sizes)
        if len(masks) != len(sizes):
            raise ValueError(f"vit: images are of {len(sizes)} sizes, and there are {len(masks)} masks")
        x = self._embed(sizes, masks, train)
        if self.pre_norm:
            x = jax.tree.map(layer_norm("pre_norm", config), x)
        ropes = self._ropes(sizes, train)
        x, between = self._apply_layers(x, config, train, intermediate, ropes)
        norm = layer_norm("final_norm", config)
        pool = self._pooling(config)
        outputs = [self._outputs(norm(tokens), pool, size) for tokens, size in zip(x, sizes, strict=True)]
        if intermediate:
            for output, layers in zip(outputs, between, strict=True):
                output["layers"] = self._split_tokens(norm(layers))
        return tuple(outputs) if isinstance(images, tuple) else outputs[0]

    def _embed(self, sizes, masks, train):
        """For each size [B, T, D]: the class token and the registers, if any, and the patches."""
        scale = 1 / 3 if self.kernel_init in _PYTORCHS_PATCHES else 1.0
        patch_init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
        embed = PatchEmbedding(
            self.patch,
            self.width,
            self.patch_bias,
            self.channels,
            patch_init,
            self.dtype,
            name="patch_embedding",
        )
        init = nn.initializers.normal(self._init_std()[0])
        mask_token = self._tokens("mask_token", (), nn.initializers.zeros) if self.mask_token else None
        cls_token = self._tokens("class_token", (), init) if self.class_token else None
        table = self._table()
        registers = self._tokens("registers", (self.registers,), init) if self.registers else None

        def sequence(images, mask):
            x = embed(images)
            grid = x.shape[1:3]
            x = _masked(x.reshape(len(x), -1, self.width), mask, mask_token)
            x = _after(cls_token, x)
            if table is not None:
                x = x + self._resized(table, grid).astype(self.dtype)
            x = self._drop_patches(x, train)
            tokens, patches = jnp.split(x, [int(self.class_token)], axis=1)
            return x if registers is None else jnp.concatenate([tokens, _after(registers, patches)], axis=1)

        return tuple(map(sequence, sizes, masks))

    def _table(self):
        """Learned position embedding; None with DINOv3's RoPE."""
        if self.rope_base is not None and self.rope_side is None:
            return None
        shape = (int(self.class_token) + (self.image_size // self.patch) ** 2, self.width)
        return self.param("position_embedding", nn.initializers.normal(self._init_std()[1]), shape)

    def _resized(self, table, grid):
        lookup(RESIZES, self.position_resize, "position_resize")
        side = self.image_size // self.patch
        return resize_position_embedding(table, (side, side), grid, self.position_resize)

    def _ropes(self, sizes, train):
        """The patches' Rope for each size; None without rope_base."""
        if self.rope_base is None:
            return (None,) * len(sizes)
        if self.patch_dropout:
            raise ValueError("vit: with rope_base every patch has its place; patch_dropout must be 0")
        return tuple(self._rope(images.shape, train) for images in sizes)

    def _rope(self, shape, train):
        scale = 1.0
        if train and self.rope_rescale != 1:
            limit = math.log(self.rope_rescale)
            key = self.make_rng("dropout")
            scale = jnp.exp(jax.random.uniform(key, minval=-limit, maxval=limit))
        return self.rope(shape, scale)

    def rope(self, shape, scale=1.0) -> Rope:
        """The patches' Rope for images of a shape [B, H, W, C]; scale: see rope_sincos."""
        grid = (shape[1] // self.patch, shape[2] // self.patch)
        head_dim = self.width // self.heads
        return rope_sincos(grid, head_dim, self.rope_base, scale, self.rope_dtype, self.rope_side)

    def _drop_patches(self, x, train):
        """x: [B, T, D] with a random subset of each example's patches; the class token stays."""
        if not self.patch_dropout or not train:
            return x
        first = int(self.class_token)
        tokens, patches = x[:, :first], x[:, first:]
        total = patches.shape[1]
        count = max(1, int(total * (1 - self.patch_dropout)))
        chosen = random_subsets(self.make_rng("dropout"), len(x), total, count)
        return jnp.concatenate([tokens, take(patches, chosen)], axis=1)

    def _tokens(self, name, count, init):
        """[n, D]: learned tokens, the same for all examples; count: () for one, or (n,)."""
        tokens = self.param(name, init, (*count, self.width))
        return tokens.astype(self.dtype).reshape(-1, self.width)

    def _init_std(self):
        return INIT_STD.get(self.kernel_init, (self.width**-0.5,) * 2)

    def _apply_layers(self, x, config, train, intermediate, ropes):
        """Each x after all layers, and [n, *x.shape] after the n intermediate ones, None without."""
        subset = lookup({"linear": False, "subset": True}, self.drop_path_mode, "drop_path_mode")
        rates = None if subset else self._drop_rates()
        between, wanted = None, self._indices(intermediate)
        if len(wanted):
            between = jax.tree.map(lambda x: jnp.zeros((len(wanted), *x.shape), x.dtype), x)
            # Pass the layer index through the scan.
            rates = list(enumerate(rates or [None] * self.depth))

        def call(layer, state, per_layer):
            x, between = state
            index, rate = per_layer if len(wanted) else (None, per_layer)
            # The size of a subset must be a plain number, in a loop too.
            x = layer(x, (self.drop_path or None) if subset else rate, train, ropes)
            if len(wanted):
                here = (wanted == index)[:, None, None, None]
                between = jax.tree.map(lambda x, stored: jnp.where(here, x, stored), x, between)
            return x, between

        make = functools.partial(Layer, config, subset_groups=self.drop_path_groups if subset else None)
        indices, how = range(self.depth), dict(scan=self.scan, remat=self.remat)
        return layer_stack.apply_layers(make, "layer", indices, call, (x, between), rates, **how)

    def _indices(self, intermediate):
        for i in intermediate:
            if not -self.depth <= i < self.depth:
                raise ValueError(f"vit: intermediate has {i}; there are {self.depth} layers")
        return np.arange(self.depth)[list(intermediate)]

    def _split_tokens(self, x):
        """[..., T, D] -> dict(cls: [..., D] and registers: [..., R, D], if any, patches: [..., N, D])."""
        first = int(self.class_token)
        tokens = dict(cls=x[..., 0, :].astype(jnp.float32)) if self.class_token else {}
        if self.registers:
            tokens["registers"] = x[..., first : first + self.registers, :]
        return tokens | dict(patches=x[..., first + self.registers :, :])

    def _drop_rates(self):
        if not self.drop_path:
            return None
        return [self.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]

    def _pooling(self, config: LayerConfig):
        """The function (all tokens [B, T, D], patches: [B, N, D]) -> [B, D]."""
        if self.pooling == "cls" and self.class_token:
            return lambda x, patches: x[:, 0]
        if self.pooling == "map":
            heads, mlp_dim = self.pooling_heads or config.heads, self.pooling_mlp_dim or config.mlp_dim
            pooling = AttentionPooling(config._replace(heads=heads, mlp_dim=mlp_dim), name="pooling")
            return lambda x, patches: pooling(x)
        if self.pooling == "mean":
            return lambda x, patches: patches.astype(jnp.float32).mean(1)
        raise ValueError(
            f"vit: pooling is {self.pooling!r} and class_token {self.class_token}; "
            "use map, mean, or cls with a class token"
        )

    def _outputs(self, x, pool, images):
        """The outputs of the images of one size, from their tokens after the final norm."""
        outputs = self._split_tokens(x)
        if not self.patch_dropout:
            grid = [side // self.patch for side in images.shape[1:3]]
            outputs["pyramid"] = (outputs["patches"].reshape(len(x), *grid, -1),)
        pooled = pool(x, outputs["patches"]).astype(jnp.float32)
        return dict(pooled=pooled) | outputs


def _masked(x, mask, token):
    """x: [B, N, D], with the mask token [1, D] where mask: bool[B, N] is True."""
    if mask is None:
        return x
    if token is None:
        raise ValueError("vit: there is a mask, but mask_token is False")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"vit: mask is {list(mask.shape)}; the images' patches are {list(x.shape[:2])}")
    return jnp.where(mask[:, :, None], token, x)


def _after(tokens, x):
    """[B, n + N, D]: in every example tokens [n, D], if there are any, then x: [B, N, D]."""
    if tokens is None:
        return x
    return jnp.concatenate([jnp.broadcast_to(tokens, (len(x), *tokens.shape)), x], axis=1)


def attention_maps(model: ViT, variables: Mapping, images, layer: int = -1, queries: int | None = None):
    """The attention weights of a layer, recomputed from its queries and keys.

    Args:
      model: a ViT.
      variables: its variables.
      images: float[B, H, W, 3], normalised.
      layer: its index, a negative one from the end.
      queries: of how many first tokens the weights are computed; None for all.

    Returns:
      float32[B, heads, T, T], or [B, heads, queries, T]; rows sum to one. T: the class token and the
      registers, if the model has them, then the patches, row by row.
    """

    def is_query_or_key(module, _):
        return module.name in ("query", "key")

    captured = model.apply(
        variables, images, capture_intermediates=is_query_or_key, mutable=["intermediates"]
    )[1]
    captured = captured["intermediates"]
    if model.scan:
        modules = jax.tree.map(lambda x: x[layer], captured["layer_stack"])
    else:
        modules = captured[f"layer{layer % model.depth}"]
    query, key = (modules[name]["__call__"][0].astype(jnp.float32) for name in ("query", "key"))
    query, key = (x.reshape(*x.shape[:2], model.heads, -1) for x in (query, key))
    if model.rope_base is not None:
        rope = model.rope(images.shape)
        query, key = apply_rope(query, rope), apply_rope(key, rope)
    return attention_weights(query[:, :queries], key)
