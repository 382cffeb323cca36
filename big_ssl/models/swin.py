"""Swin (Liu et al. 2021, arXiv 2103.14030), Swin V2 (Liu et al. 2022, arXiv 2111.09883) and CoSwin, the image
encoder of Florence (Yuan et al. 2021, arXiv 2111.11432, section 2.3): transformers over windows of a map,
which are shifted in every other block, with maps of strides 4, 8, 16 and 32.

CoSwin has Swin's blocks, CvT's convolutional embeddings and global average pooling.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from big_ssl.models import input_channels, layer_stack
from big_ssl.models import windows as windows_lib
from big_ssl.models.attention import of_encoder
from big_ssl.models.encoder import Encoder
from big_ssl.models.map_embeddings import PATCH, ConvEmbedding, PatchMerging, PatchNorm
from big_ssl.models.position_embedding import resize_square_table
from big_ssl.models.transformer import ACTIVATIONS, InitStd, LayerConfig, drop_path, lookup, mlp
from big_ssl.models.window_attention import (
    LOG_SCALE,
    ContinuousPosition,
    PositionTable,
    window_attention,
)
from big_ssl.models.windows import Windows
from big_ssl.parallel.stacked import SUFFIX

_T = dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
_S = _T | dict(depths=(2, 2, 18, 2))
_B = dict(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))
_L = dict(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48))
# Published: Swin's section 3.3 and Swin V2's section 4.1, with the windows for 224 pixels, 256 pixels, and
# 192 pixels of swinv2_l; Swin's B and L have windows of 12 at 384 pixels. Of CoSwin its paper states the
# blocks, the embeddings and the size of H: 637M parameters. T, B and L have Swin's sizes. H is reconstructed,
# not published: of the sizes tried the one of that many parameters (636.5M with a projection to 1,024). Its
# windows of 12 are for 384 pixels; at 224 they would pad maps of 14 x 14 to 24 x 24, and configs/florence.py
# has windows of 7 (0.34M parameters fewer).
VARIANTS: dict[str, dict[str, Any]] = {
    "swin_t": _T,
    "swin_s": _S,
    "swin_b": _B,
    "swin_l": _L,
    "swinv2_t": _T | dict(version=2, window=8),
    "swinv2_s": _S | dict(version=2, window=8),
    "swinv2_b": _B | dict(version=2, window=8),
    "swinv2_l": _L | dict(version=2, window=12),
    "coswin_t": _T | dict(embedding="conv"),
    "coswin_b": _B | dict(embedding="conv"),
    "coswin_l": _L | dict(embedding="conv"),
    "coswin_h": dict(width=352, depths=(2, 2, 16, 2), heads=(11, 22, 44, 88), window=12, embedding="conv"),
}

# Of Swin's and UniCL's code, which cut at 2, not at two standard deviations: a plain normal distribution.
_INIT_STD = InitStd(0.02, 0.02, 0.02, 0.02)


class Block(nn.Module):
    """Attention within windows, then an MLP, both added to x: [B, H, W, D].

    version: 1, Swin, which normalises their inputs; 2, Swin V2, which normalises their outputs.

    window: the side of the position table's windows; pretrained_window: see window_attention.
    __call__(x, windows, shift, drop_rate, train): windows and shift: how x is split; drop_rate: see
    transformer.Layer.
    """

    config: LayerConfig
    window: int
    version: int
    pretrained_window: int

    @nn.compact
    def __call__(self, x, windows: Windows, shift: int, drop_rate, train: bool):
        attend, forward = self._attention(x.shape[-1]), mlp(x.shape[-1], self.config)
        x = self._add("attention_norm", x, lambda y: attend(y, windows, shift), drop_rate, train)
        return self._add("mlp_norm", x, forward, drop_rate, train)

    def _attention(self, width):
        heads, name = self.config.heads, "position_bias"
        if self.version == 1:
            return window_attention(width, self.config, PositionTable(heads, self.window, name=name))
        bias = ContinuousPosition(heads, self.pretrained_window, name=name)
        log_scale = self.param("log_scale", nn.initializers.constant(LOG_SCALE), (heads,))
        return window_attention(width, self.config, bias, log_scale)

    def _add(self, name, x, branch, drop_rate, train):
        # Swin V2's blocks start as the identity.
        start = nn.initializers.ones if self.version == 1 else nn.initializers.zeros
        norm = nn.LayerNorm(epsilon=self.config.epsilon, dtype=self.config.dtype, scale_init=start, name=name)
        y = branch(norm(x)) if self.version == 1 else norm(branch(x))
        if drop_rate is not None and train:
            y = drop_path(y, drop_rate, self.make_rng("dropout"))
        return x + y


class Pair(nn.Module):
    """Two blocks, the second on shifted windows; block: builds one, given its name.

    __call__(x: [B, H, W, D], windows, drop_rates, train) -> [B, H, W, D]; drop_rates: of both, or None.
    """

    block: functools.partial

    @nn.compact
    def __call__(self, x, windows: Windows, drop_rates, train: bool):
        plain, shifted = drop_rates or (None, None)
        x = self.block(name="plain")(x, windows, 0, plain, train)
        return self.block(name="shifted")(x, windows, windows.shift, shifted, train)


class Swin(Encoder):
    """Swin, Swin V2 and CoSwin; VARIANTS are their sizes, of which CoSwin's are not all published.

    width: of the first stage, twice as much in each next one. depths: blocks in each stage, even numbers;
    heads: in each stage. mlp_ratio: hidden units of an MLP by the width.
    window: the side of a window, one number or one for each stage. clamp_window: whether a map that is no
      larger than a window has windows of its size, which are not shifted (classification); otherwise it is
      padded and shifted (detection).
    version: 1, Swin; 2, Swin V2: cosines, a continuous bias of positions, norms after the branches.
      pretrained_window: of Swin V2, the windows of the weights it was fine-tuned from, 0 for `window`; one
      number or one for each stage.
    embedding: "patch", Swin's; "conv", CvT's (CoSwin).
    channels: of the images. mask_token: whether there is one to replace masked patches.
    activation: a name in models.transformer. epsilon: of layer norms.
    drop_path: each example skips a branch of block i of n with probability drop_path * i / (n - 1).
    attention: its implementation, see models/attention.py; a fused kernel must take a bias. scan, remat: of
      the pairs of blocks of each stage, see models/layer_stack.py.
    """

    width: int = 96
    depths: Sequence[int] = (2, 2, 6, 2)
    heads: Sequence[int] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    window: int | Sequence[int] = 7
    clamp_window: bool = True
    version: int = 1
    pretrained_window: int | Sequence[int] = 0
    embedding: str = "patch"
    channels: int = 3
    mask_token: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-5
    drop_path: float = 0.0
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    stacks: ClassVar[Mapping[str, int]] = {r"stage\d+_pair": 0}
    layers_per_entry = 2

    @property
    def outputs(self) -> tuple[str, ...]:
        """All always."""
        return ("pooled", "patches", "pyramid")

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """Of each stage."""
        return tuple(PATCH * 2**i for i in range(len(self.depths)))

    @property
    def first_kernel(self) -> str:
        """See Encoder."""
        return "patch_embedding/kernel" if self.embedding == "conv" else "patch_embedding/projection/kernel"

    @property
    def num_layers(self) -> int:
        """All blocks."""
        return sum(self.depths)

    def layer_id(self, path):
        """As SimMIM counts (Xie et al. 2022, arXiv 2111.09886, optimizer.py of its code): a merging belongs
        to the last block before it."""
        if path[0] == "final_norm":
            return self.num_layers + 1
        place = re.fullmatch(rf"(stage|merging)(\d+)(?:_pair(\d+|{SUFFIX}))?", path[0])
        if place is None:
            return 0
        stage, pair = int(place[2]), place[3]
        if place[1] == "merging":
            return sum(self.depths[: stage + 1])
        pairs = 0 if pair == SUFFIX else int(pair)
        return sum(self.depths[:stage]) + 2 * pairs + ("plain", "shifted").index(path[1]) + 1

    def resize_params(self, name, array, shape):
        """Position tables for other windows, as PyTorch's bicubic interpolation resizes them."""
        if name == self.first_kernel:
            return super().resize_params(name, array, shape)
        if not name.endswith("position_bias/table") or array.shape[:-2] != tuple(shape[:-2]):
            return None
        tables = array.reshape(-1, *array.shape[-2:])
        resized = [resize_square_table(table, shape[-2:], 0, "bicubic") for table in tables]
        return None if resized[0] is None else np.stack(resized).reshape(shape)

    @nn.compact
    def __call__(self, images, train: bool = False, mask=None):
        """Encodes images of any size.

        Args:
          images: float[B, H, W, C], normalised.
          train: whether to drop paths.
          mask: bool[B, N], which of the last map's positions, row by row, the mask token replaces: in the
            first map, all 8 x 8 that become one.

        Returns:
          dict(pooled: float32[B, D], the mean of patches; patches: dtype[B, N, D], the last map after the
          final norm, row by row; pyramid: a tuple of dtype[B, H_i, W_i, D_i], the maps of strides 4, 8, 16,
          32 after each stage, before any norm).

        Raises:
          ValueError: for options, images and masks that do not fit.
        """
        self._check(images)
        x = self._masked(self._first_map(images), mask)
        rates, pyramid = self._drop_rates(), []
        for i in range(len(self.depths)):
            x = self._stage(i, self._merging(i - 1)(x) if i else x, rates, train)
            pyramid.append(x)
        x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="final_norm")(x)
        patches = x.reshape(len(x), -1, x.shape[-1])
        return dict(pooled=patches.astype(jnp.float32).mean(1), patches=patches, pyramid=tuple(pyramid))

    def _check(self, images):
        lookup(ACTIVATIONS, self.activation, "activation")
        input_channels.check_images("swin", images.shape, self.channels, PATCH)
        if self.embedding not in ("patch", "conv") or self.version not in (1, 2):
            raise ValueError(
                f"swin: embedding is {self.embedding!r}, patch or conv; version is {self.version}, 1 or 2"
            )
        for name in ("heads", "window", "pretrained_window"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != len(self.depths):
                raise ValueError(f"swin: {name} is {value}; there are {len(self.depths)} stages")
        if any(depth % 2 or depth < 2 for depth in self.depths):
            raise ValueError(f"swin: depths is {self.depths}; blocks come in pairs")

    def _first_map(self, images):
        options = dict(width=self.width, epsilon=self.epsilon, dtype=self.dtype, name="patch_embedding")
        if self.embedding == "conv":
            return ConvEmbedding(kernel=7, stride=PATCH, padding=2, **options)(images)
        return PatchNorm(**options)(images)

    def _merging(self, i):
        options = dict(epsilon=self.epsilon, dtype=self.dtype, name=f"merging{i}")
        if self.embedding == "conv":
            return ConvEmbedding(kernel=3, stride=2, padding=1, **options)
        return PatchMerging(norm_last=self.version == 2, **options)

    def _masked(self, x, mask):
        """x: [B, H, W, D] with the mask token where mask: bool[B, N] is True."""
        if not self.mask_token:
            if mask is not None:
                raise ValueError("swin: there is a mask, but mask_token is False")
            return x
        token = self.param("mask_token", nn.initializers.zeros, (self.width,))
        if mask is None:
            return x
        stride = 2 ** (len(self.depths) - 1)
        grid = [-(-side // stride) for side in x.shape[1:3]]
        if mask.shape != (len(x), grid[0] * grid[1]):
            raise ValueError(f"swin: mask is {list(mask.shape)}; the last maps are {[len(x), *grid]}")
        mask = mask.reshape(len(x), *grid).repeat(stride, 1).repeat(stride, 2)
        mask = mask[:, : x.shape[1], : x.shape[2], None]
        return jnp.where(mask, token.astype(self.dtype), x)

    def _stage(self, i, x, rates, train):
        window = _of_stage(self.window, i)
        windows = windows_lib.split(*x.shape[1:3], window, self.clamp_window)
        pretrained = _of_stage(self.pretrained_window, i)
        block = functools.partial(Block, self._layer_config(i), window, self.version, pretrained)
        first, depth = sum(self.depths[:i]), self.depths[i]
        return layer_stack.apply_layers(
            functools.partial(Pair, block),
            f"stage{i}_pair",
            range(depth // 2),
            lambda pair, x, drop_rates: pair(x, windows, drop_rates, train),
            x,
            rates and [(rates[j], rates[j + 1]) for j in range(first, first + depth, 2)],
            scan=self.scan,
            remat=self.remat,
        )

    def _layer_config(self, i):
        width, heads = self.width * 2**i, self.heads[i]
        if width % heads:
            raise ValueError(f"swin: {heads} heads do not divide a width of {width}, in stage {i}")
        return LayerConfig(
            heads,
            int(self.mlp_ratio * width),
            self.activation,
            self.epsilon,
            _INIT_STD,
            self.dtype,
            feed_forward="mlp",
            layer_scale=None,
            attention=of_encoder(self),
            qkv_bias="qkv" if self.version == 1 else "qv",
        )

    def _drop_rates(self):
        if not self.drop_path:
            return None
        return [self.drop_path * i / max(1, self.num_layers - 1) for i in range(self.num_layers)]


def _of_stage(value, i):
    """Of one number or one for each stage."""
    return value if isinstance(value, int) else value[i]
