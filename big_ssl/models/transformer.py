"""The pre-norm transformer layer and attention pooling, for encoders of images and of text."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.models import attention as attention_lib
from big_ssl.models.random_subsets import add_on_subset
from big_ssl.models.rotary import Rope, apply_rope


def quick_gelu(x):
    """x * sigmoid(1.702 x), the approximation (Hendrycks and Gimpel 2016) of all OpenAI's CLIP weights."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


class InitStd(NamedTuple):
    """Standard deviations of a layer's initial kernels; all biases start at zero."""

    attention: float  # query, key, value
    out: float
    mlp_in: float
    mlp_out: float


def _clip(width, mlp_dim, depth):
    del mlp_dim
    residual = (2 * depth * width) ** -0.5  # two residual branches a layer
    return InitStd(width**-0.5, residual, (2 * width) ** -0.5, residual)


def _torch(width, mlp_dim, depth):
    del depth
    # The three projections are one matrix [3 * width, width] there, uniform by Glorot's rule.
    return InitStd((2 * width) ** -0.5, (3 * width) ** -0.5, (3 * width) ** -0.5, (3 * mlp_dim) ** -0.5)


def _glorot(width, mlp_dim, depth):
    del depth
    mlp = math.sqrt(2 / (width + mlp_dim))
    return InitStd(width**-0.5, width**-0.5, mlp, mlp)


def _dino(width, mlp_dim, depth):
    del width, mlp_dim, depth
    # Cut at 2 there, not at two standard deviations: a plain normal distribution.
    return InitStd(0.02, 0.02, 0.02, 0.02)


def _unicl(width, mlp_dim, depth):
    del mlp_dim, depth
    # Cut at 2, as DINO's; the three projections are PyTorch's default, as in _torch.
    return InitStd((2 * width) ** -0.5, 0.02, 0.02, 0.02)


# Initial kernels as published. "clip": its text encoder, initialize_parameters of OpenAI's code;
# "torch": PyTorch's default, which that code keeps for the image encoder; "glorot": SigLIP (big_vision);
# "dino": DINO and iBOT; "dinov2": the same, except for its tokens (models/vit.py); "unicl": UniCL's text
# encoder (microsoft/UniCL, model/text_encoder/transformer.py).
INITIALISERS = {
    "clip": _clip,
    "torch": _torch,
    "glorot": _glorot,
    "dino": _dino,
    "dinov2": _dino,
    "unicl": _unicl,
}


def lookup(table: Mapping, key: str, option: str):
    """table[key]. Raises ValueError that names the option and the table's keys."""
    if key not in table:
        raise ValueError(f"transformer: {option} is {key!r}; there are {', '.join(table)}")
    return table[key]


class LayerConfig(NamedTuple):
    """The options that all layers of an encoder and its pooling head share."""

    heads: int
    mlp_dim: int
    activation: str  # a name in ACTIVATIONS
    epsilon: float  # of layer norms
    init_std: InitStd
    dtype: jnp.dtype
    feed_forward: str  # a name in FEED_FORWARDS
    layer_scale: float | None  # the start of LayerScale, None for none
    attention: str  # a name in attention.IMPLEMENTATIONS
    qkv_bias: str  # the initials of the projections query, key and value that have a bias


def layer_config(
    encoder, feed_forward: str = "mlp", layer_scale: float | None = None, qkv_bias: str = "qkv"
) -> LayerConfig:
    """The LayerConfig of an encoder's layers.

    Args:
      encoder: a module with the fields width, depth, heads, mlp_dim (None for feed_forward's default),
        activation, epsilon, kernel_init (a name in INITIALISERS), attention and dtype.
      feed_forward, layer_scale, qkv_bias: as in LayerConfig.

    Raises:
      ValueError: for unknown names, and if heads does not divide width.
    """
    if encoder.width % encoder.heads:
        raise ValueError(f"transformer: {encoder.heads} heads do not divide a width of {encoder.width}")
    lookup(ACTIVATIONS, encoder.activation, "activation")
    if not set(qkv_bias) <= set("qkv"):
        raise ValueError(f"transformer: qkv_bias is {qkv_bias!r}; it has letters of 'qkv'")
    default = lookup(FEED_FORWARDS, feed_forward, "feed_forward").default_dim
    mlp_dim = encoder.mlp_dim or default(encoder.width)
    init_std = lookup(INITIALISERS, encoder.kernel_init, "kernel_init")(encoder.width, mlp_dim, encoder.depth)
    common = (encoder.activation, encoder.epsilon, init_std, encoder.dtype)
    return LayerConfig(
        encoder.heads,
        mlp_dim,
        *common,
        feed_forward,
        layer_scale,
        attention=attention_lib.of_encoder(encoder),
        qkv_bias=qkv_bias,
    )


def layer_norm(name: str, config: LayerConfig) -> nn.LayerNorm:
    """A layer norm; flax computes it in float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=config.epsilon, dtype=config.dtype, name=name)


def multi_head_attention(width: int, config: LayerConfig) -> Callable:
    """Multi-head attention: f(x: [B, Q, D], context: [B, K, D], causal=False, rope=None) -> [B, Q, D].

    causal: whether a position sees only itself and those before it. rope: rotates the queries and keys of the
    patches at their end. Only for use inside a module's compact method; it creates the parameters query, key,
    value, out, which all calls of the function share.
    """
    names = ("query", "key", "value")
    deviation = config.init_std.attention
    kernels = [dense(name, width, deviation, config, name[0] in config.qkv_bias) for name in names]
    out = dense("out", width, config.init_std.out, config)

    def attend(x, context, causal=False, rope=None):
        query, key, value = (
            kernel(inputs).reshape(*inputs.shape[:2], config.heads, -1)
            for kernel, inputs in zip(kernels, (x, context, context), strict=True)
        )
        if rope is not None:
            query, key = apply_rope(query, rope), apply_rope(key, rope)
        y = attention_lib.attention(query, key, value, causal=causal, implementation=config.attention)
        return out(y.reshape(x.shape))

    return attend


def mlp(width: int, config: LayerConfig) -> Callable:
    """Two products with the activation between them; for use as `multi_head_attention`."""
    hidden = dense("mlp_in", config.mlp_dim, config.init_std.mlp_in, config)
    out = dense("mlp_out", width, config.init_std.mlp_out, config)
    return lambda x: out(ACTIVATIONS[config.activation](hidden(x)))


def swiglu(width: int, config: LayerConfig) -> Callable:
    """Two products of which one, through SiLU, gates the other, and a third (Shazeer 2020, 2002.05202)."""
    gate, hidden = (
        dense(name, config.mlp_dim, config.init_std.mlp_in, config) for name in ("mlp_gate", "mlp_in")
    )
    out = dense("mlp_out", width, config.init_std.mlp_out, config)
    return lambda x: out(nn.silu(gate(x)) * hidden(x))


class FeedForward(NamedTuple):
    """A layer's feed-forward part. make: builds it; default_dim: layer's width -> hidden width."""

    make: Callable
    default_dim: Callable[[int], int]


FEED_FORWARDS = {
    "mlp": FeedForward(mlp, lambda width: 4 * width),
    # DINOv2's rule: about the parameters of an MLP of 4 * width, in multiples of eight.
    "swiglu": FeedForward(swiglu, lambda width: (8 * width // 3 + 7) // 8 * 8),
}


def feed_forward(width: int, config: LayerConfig) -> Callable:
    """The feed-forward part that the config names; for use as `multi_head_attention`."""
    return FEED_FORWARDS[config.feed_forward].make(width, config)


def dense(name, features, deviation, config, use_bias=True) -> nn.Dense:
    """A linear layer whose kernel is normal with this standard deviation at the start."""
    init = nn.initializers.normal(deviation)
    return nn.Dense(features, use_bias=use_bias, kernel_init=init, dtype=config.dtype, name=name)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)). x: [B, L, D], or a tuple of such arrays with
    several B and L, which share one read and one gather of the layer's weights; returns the same shapes.

    Each branch's output is multiplied by a learned vector, which starts at config.layer_scale unless that is
    None (LayerScale, Touvron et al. 2021, arXiv 2103.17239).
    drop_rate: the probability, a number or float32[], that an example skips a residual branch in training
    (stochastic depth, Huang et al. 2016); None disables it, and needs no key.
    subset_groups: with None, each example is drawn independently. With a number of groups of the batch,
    exactly drop_rate of each group's examples skip the branch and are not computed; drop_rate must then be a
    Python number.
    ropes: for each array of x, see `multi_head_attention`.
    """

    config: LayerConfig
    causal: bool = False
    subset_groups: int | None = None

    @nn.compact
    def __call__(self, x, drop_rate=None, train: bool = False, ropes: Sequence[Rope | None] = (None,)):
        width = jax.tree.leaves(x)[0].shape[-1]
        x = self._add(x, self._attention(width, ropes), drop_rate, train)
        return self._add(x, self._feed_forward(width), drop_rate, train)

    def _attention(self, width, ropes):
        norm, attend = layer_norm("attention_norm", self.config), multi_head_attention(width, self.config)
        scaled = self._scale("attention_scale", width)

        def branch(x):
            leaves, structure = jax.tree.flatten(x)
            normed = zip(map(norm, leaves), ropes, strict=True)
            return structure.unflatten([scaled(attend(y, y, self.causal, rope)) for y, rope in normed])

        return branch

    def _feed_forward(self, width):
        norm, forward = layer_norm("mlp_norm", self.config), feed_forward(width, self.config)
        scaled = self._scale("mlp_scale", width)
        return functools.partial(jax.tree.map, lambda x: scaled(forward(norm(x))))

    def _scale(self, name, width):
        if self.config.layer_scale is None:
            return lambda y: y
        scale = self.param(name, nn.initializers.constant(self.config.layer_scale), (width,))
        return lambda y: y * scale.astype(y.dtype)

    def _add(self, x, branch, drop_rate, train):
        if self.subset_groups is None or drop_rate is None or not train:
            return jax.tree.map(lambda x, y: x + self._drop_path(y, drop_rate, train), x, branch(x))
        return add_on_subset(x, branch, drop_rate, self.subset_groups, self.make_rng("dropout"))

    def _drop_path(self, y, drop_rate, train):
        return y if drop_rate is None or not train else drop_path(y, drop_rate, self.make_rng("dropout"))


def drop_path(y, drop_rate, key):
    """y: [B, ...] with each example zero with this probability, and otherwise divided by the opposite one."""
    keep = 1 - drop_rate
    mask = jax.random.bernoulli(key, keep, (y.shape[0], *(1,) * (y.ndim - 1)))
    return y * (mask / keep).astype(y.dtype)


class AttentionPooling(nn.Module):
    """A learned query attends to all tokens, then a feed-forward part: x: [B, N, D] -> [B, D].

    Multihead attention pooling (Zhai et al. 2022, arXiv 2106.04560, section 3.2), as in SigLIP.
    """

    config: LayerConfig

    @nn.compact
    def __call__(self, x):
        batch, _, width = x.shape
        probe = self.param("probe", nn.initializers.normal(math.sqrt(2 / (1 + width))), (width,))
        query = jnp.broadcast_to(probe.astype(self.config.dtype), (batch, 1, width))
        y = multi_head_attention(width, self.config)(query, x)
        y = y + feed_forward(width, self.config)(layer_norm("mlp_norm", self.config)(y))
        return y[:, 0]
