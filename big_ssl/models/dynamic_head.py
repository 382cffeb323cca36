"""Dynamic Head (Dai et al. 2021, arXiv 2106.08322): attention over the levels, the positions and the channels
of a feature pyramid; and the predictions of a detector on it.

As in the authors' code, not the paper: the hard sigmoid is relu6(x + 3) / 6, a level exchanges features with
its two neighbours, and spatial attention is a deformable convolution with offsets and masks of the level.
"""

import itertools
import math

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.contrastive import l2_normalize
from big_ssl.models.deformable_convolution import deformable_conv
from big_ssl.models.interpolation import resize_align_corners

# PyTorch's default initialisation, which the authors' code keeps for convolutions with offsets.
_TORCH_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_INIT = nn.initializers.normal(0.01)
# RetinaNet's initialisation (arXiv 1708.02002, section 4.1): every anchor begins as background.
_PRIOR = 0.01
_PRIOR_BIAS = nn.initializers.constant(-math.log((1 - _PRIOR) / _PRIOR))
_TAPS = 9


class DyReLU(nn.Module):
    """Dynamic ReLU (Chen et al. 2020, arXiv 2003.10027, DY-ReLU-B): task-aware attention.

    The larger of two linear functions of each channel, whose slopes and offsets follow from the mean over
    positions: float[B, H, W, C] -> [B, H, W, C]. With zero outputs of the second layer it is a ReLU.
    """

    reduction: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        pooled = x.mean((1, 2), keepdims=True)
        hidden = nn.relu(nn.Dense(channels // self.reduction, dtype=self.dtype, name="squeeze")(pooled))
        theta = nn.hard_sigmoid(nn.Dense(4 * channels, dtype=self.dtype, name="excite")(hidden)) - 0.5
        slope, offset, other_slope, other_offset = jnp.split(theta, 4, -1)
        return jnp.maximum(x * (2 * slope + 1) + offset, x * 2 * other_slope + other_offset)


class DeformableConvNorm(nn.Module):
    """A 3x3 deformable convolution and a group norm.

    __call__(x: [B, H, W, C], offsets, mask) -> [B, H', W', channels]; see deformable_conv.
    """

    channels: int
    groups: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, offsets, mask):
        kernel = self.param("kernel", _TORCH_INIT, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        y = deformable_conv(x.astype(self.dtype), offsets, mask, kernel, bias, self.stride)
        return nn.GroupNorm(self.groups, epsilon=1e-5, dtype=self.dtype, name="norm")(y)


class DynamicHeadBlock(nn.Module):
    """One block of DynamicHead, see there; maps: a tuple of [B, h, w, C], fine to coarse, to the same of
    `channels`. Raises ValueError if a map is not half as large as its finer neighbour, rounded up."""

    channels: int
    groups: int = 16
    misindexed_offsets: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        shared = dict(channels=self.channels, groups=self.groups, dtype=self.dtype)
        self.offsets = nn.Conv(3 * _TAPS, (3, 3), padding=1, kernel_init=_TORCH_INIT, dtype=self.dtype)
        self.same = DeformableConvNorm(**shared)
        self.finer = DeformableConvNorm(**shared, stride=2)
        self.coarser = DeformableConvNorm(**shared)
        self.level_attention = nn.Dense(1, kernel_init=_INIT, dtype=self.dtype)
        self.activation = DyReLU(dtype=self.dtype)

    def __call__(self, maps):
        _check_sizes(maps)
        return tuple(self._level(maps, i) for i in range(len(maps)))

    def _level(self, maps, i):
        sampling = self._sampling(maps[i])
        features = [self.same(maps[i], *sampling)]
        if i > 0:
            features.append(self.finer(maps[i - 1], *sampling))
        if i < len(maps) - 1:
            shape = maps[i + 1].shape[1:3]
            reindex = _misindexed if self.misindexed_offsets else resize_align_corners
            coarse = self.coarser(maps[i + 1], *(reindex(array, shape) for array in sampling))
            features.append(resize_align_corners(coarse, maps[i].shape[1:3]))
        return self.activation(sum(x * self._attention(x) for x in features) / len(features))

    def _sampling(self, x):
        """Offsets float32[B, h, w, 18] and masks float32[B, h, w, 9]."""
        y = self.offsets(x).astype(jnp.float32)
        return y[..., : 2 * _TAPS], nn.sigmoid(y[..., 2 * _TAPS :])

    def _attention(self, x):
        """[B, 1, 1, 1] in 0.5..1: scale-aware attention, how much of a neighbour's features is taken."""
        return nn.hard_sigmoid(nn.relu(self.level_attention(x.mean((1, 2), keepdims=True))))


class DynamicHead(nn.Module):
    """Blocks on a pyramid: a tuple of maps [B, h, w, C], fine to coarse, to the same of `channels`.

    A block convolves each level, the finer one with stride 2 and the coarser one, which is then upsampled,
    all deformed by the offsets and masks of the level itself; their mean is weighted by scale-aware attention
    and goes through a DyReLU. On the coarser map, offsets and masks of the level are resized to its size.

    channels: a multiple of groups. blocks: 6 as published. groups: of group norms.
    misindexed_offsets: for the published weights of Dynamic Head and GLIP: their operation reads offsets and
      masks for the coarser map as if they had its size, the first numbers of each in channel-major order,
      which belong to other positions.
    """

    channels: int
    blocks: int = 6
    groups: int = 16
    misindexed_offsets: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps):
        if self.channels % self.groups:
            raise ValueError(
                f"dynamic head: {self.channels} channels are no multiple of {self.groups} groups"
            )
        options = (self.channels, self.groups, self.misindexed_offsets, self.dtype)
        for i in range(self.blocks):
            maps = DynamicHeadBlock(*options, name=f"block{i}")(tuple(maps))
        return tuple(maps)


class Predictions(nn.Module):
    """What a detector predicts at each position, by 1x1 convolutions that all levels share.

    __call__(maps: a tuple of [B, h, w, D], texts) -> dict of tuples, one array for each level: logits,
    float32[B, h, w, C]; deltas, float32[B, h, w, 4], see boxes.decode_boxes, times a factor that each level
    learns; centerness, float32[B, h, w], a logit. texts: float32[C, text_width], the embeddings of the
    classes' names, L2-normalised, in any number; only with text_width.

    classes: C of a linear classifier, unused with text_width.
    text_width: 0 for a classifier; else positions are projected to this width and L2-normalised, and a logit
      is the cosine with a text, divided by a learned temperature, plus a learned bias.
    temperature: at the start.
    """

    classes: int
    text_width: int = 0
    temperature: float = 0.07
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps, texts=None):
        if (texts is not None) != bool(self.text_width):
            raise ValueError(f"Predictions: text_width is {self.text_width}, and texts {_shape(texts)}")
        logits = self._classifier() if texts is None else self._text_classifier(texts)
        deltas, centerness = self._conv(4, "box"), self._conv(1, "centerness")
        scales = self.param("box_scale", nn.initializers.ones, (len(maps),))
        return dict(
            logits=tuple(logits(x) for x in maps),
            deltas=tuple(scales[i] * deltas(x).astype(jnp.float32) for i, x in enumerate(maps)),
            centerness=tuple(centerness(x)[..., 0].astype(jnp.float32) for x in maps),
        )

    def _classifier(self):
        conv = self._conv(self.classes, "class", bias_init=_PRIOR_BIAS)
        return lambda x: conv(x).astype(jnp.float32)

    def _text_classifier(self, texts):
        projection = self._conv(self.text_width, "text_projection")
        start = nn.initializers.constant(math.log(self.temperature))
        temperature = jnp.exp(self.param("log_temperature", start, ()))
        bias = self.param("bias", _PRIOR_BIAS, ())

        def logits(x):
            embeddings = l2_normalize(projection(x).astype(jnp.float32))
            return (
                jnp.einsum("bhwd,cd->bhwc", embeddings, jnp.asarray(texts, jnp.float32)) / temperature + bias
            )

        return logits

    def _conv(self, features, name, **options):
        return nn.Conv(features, (1, 1), kernel_init=_INIT, dtype=self.dtype, name=name, **options)


def _shape(array):
    return "are not given" if array is None else f"have the shape {array.shape}"


def _check_sizes(maps):
    for fine, coarse in itertools.pairwise(maps):
        expected = tuple(-(-side // 2) for side in fine.shape[1:3])
        if coarse.shape[1:3] != expected:
            raise ValueError(
                f"dynamic head: a map of {fine.shape[1:3]} is followed by one of {coarse.shape[1:3]}, "
                f"not half as large, {expected}"
            )


def _misindexed(x, shape):
    """[B, H, W, K] -> [B, h, w, K] of the first K h w numbers of each image in the order [K, H, W]."""
    height, width = shape
    flat = x.transpose(0, 3, 1, 2).reshape(len(x), -1)[:, : x.shape[-1] * height * width]
    return flat.reshape(len(x), -1, height, width).transpose(0, 2, 3, 1)
