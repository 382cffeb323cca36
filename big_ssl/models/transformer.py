"""The pre-norm transformer layer and what is made of its parts, for towers of images and of text."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# For models/layer_layouts.py: a scanned tower keeps all its layers in one stack.
STACKS = {"layer": 0}


def quick_gelu(x):
    """x * sigmoid(1.702 x), the approximation (Hendrycks and Gimpel 2016) of all OpenAI's CLIP weights."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


class Deviations(NamedTuple):
    """Standard deviations of a layer's initial kernels; all biases start at zero."""

    attention: float  # query, key, value
    out: float
    mlp_in: float
    mlp_out: float


def _clip(width, mlp_dim, depth):
    del mlp_dim
    residual = (2 * depth * width) ** -0.5  # two residual branches a layer
    return Deviations(width**-0.5, residual, (2 * width) ** -0.5, residual)


def _torch(width, mlp_dim, depth):
    del depth
    # The three projections are one matrix [3 * width, width] there, uniform by Glorot's rule.
    return Deviations((2 * width) ** -0.5, (3 * width) ** -0.5, (3 * width) ** -0.5, (3 * mlp_dim) ** -0.5)


def _glorot(width, mlp_dim, depth):
    del depth
    mlp = math.sqrt(2 / (width + mlp_dim))
    return Deviations(width**-0.5, width**-0.5, mlp, mlp)


# Initial kernels as published. "clip": its text tower, initialize_parameters of OpenAI's code;
# "torch": PyTorch's own, at which that code leaves the image tower; "glorot": SigLIP (big_vision).
INITIALISERS = {"clip": _clip, "torch": _torch, "glorot": _glorot}


def choose(table: Mapping, key: str, option: str):
    """table[key]; raises ValueError that names the option and what there is."""
    if key not in table:
        raise ValueError(f"transformer: {option} is {key!r}; there are {', '.join(table)}")
    return table[key]


class Style(NamedTuple):
    """What all layers of a tower, and a pooling head on top of them, have in common."""

    heads: int
    mlp_dim: int
    activation: str  # a name in ACTIVATIONS
    epsilon: float  # of layer norms
    deviations: Deviations
    dtype: jnp.dtype


def make_style(tower) -> Style:
    """The style of a module with the fields width, depth, heads, mlp_dim (None is 4 * width),
    activation, epsilon, kernel_init (a name in INITIALISERS) and dtype.

    Raises ValueError for unknown names and where heads does not divide width.
    """
    if tower.width % tower.heads:
        raise ValueError(f"transformer: {tower.heads} heads do not divide a width of {tower.width}")
    choose(ACTIVATIONS, tower.activation, "activation")
    mlp_dim = tower.mlp_dim or 4 * tower.width
    deviations = choose(INITIALISERS, tower.kernel_init, "kernel_init")(tower.width, mlp_dim, tower.depth)
    return Style(tower.heads, mlp_dim, tower.activation, tower.epsilon, deviations, tower.dtype)


def layer_norm(name: str, style: Style) -> nn.LayerNorm:
    """A layer norm; flax computes it in float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=style.epsilon, dtype=style.dtype, name=name)


def attention(x, context, style: Style, causal: bool = False):
    """Multi-head attention of x: [B, Q, D] over context: [B, K, D] -> [B, Q, D].

    causal: a position sees itself and those before it. Only inside a module's compact method,
    whose parameters it makes: query, key, value, out.
    """
    query, key, value = (
        dense(name, x.shape[-1], style.deviations.attention, style)(inputs).reshape(
            *inputs.shape[:2], style.heads, -1
        )
        for name, inputs in (("query", x), ("key", context), ("value", context))
    )
    y = jax.nn.dot_product_attention(query, key, value, is_causal=causal)
    return dense("out", x.shape[-1], style.deviations.out, style)(y.reshape(x.shape))


def mlp(x, style: Style):
    """Two products with the activation between them; see `attention` for where it may stand."""
    y = dense("mlp_in", style.mlp_dim, style.deviations.mlp_in, style)(x)
    y = ACTIVATIONS[style.activation](y)
    return dense("mlp_out", x.shape[-1], style.deviations.mlp_out, style)(y)


def dense(name, features, deviation, style) -> nn.Dense:
    """A product with a kernel that starts normal of this deviation, and a bias."""
    init = nn.initializers.normal(deviation)
    return nn.Dense(features, kernel_init=init, dtype=style.dtype, name=name)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x: [B, L, D], same shape out.

    drop_rate: the chance, a number or float32[], that an example skips a residual branch while
    training (stochastic depth, Huang et al. 2016); None where there is no such chance, nor a key.
    """

    style: Style
    causal: bool = False

    @nn.compact
    def __call__(self, x, drop_rate=None, train: bool = False):
        y = layer_norm("attention_norm", self.style)(x)
        y = attention(y, y, self.style, self.causal)
        x = x + self._drop_path(y, drop_rate, train)
        y = mlp(layer_norm("mlp_norm", self.style)(x), self.style)
        return x + self._drop_path(y, drop_rate, train)

    def _drop_path(self, y, drop_rate, train):
        if drop_rate is None or not train:
            return y
        keep = 1 - drop_rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (y.shape[0], 1, 1))
        return y * (kept / keep).astype(y.dtype)


class AttentionPooling(nn.Module):
    """A learned query over all tokens, then an MLP: x: [B, N, D] -> [B, D].

    Multihead attention pooling (Zhai et al. 2022, arXiv 2106.04560, section 3.2), as in SigLIP.
    """

    style: Style

    @nn.compact
    def __call__(self, x):
        batch, _, width = x.shape
        probe = self.param("probe", nn.initializers.normal(math.sqrt(2 / (1 + width))), (width,))
        query = jnp.broadcast_to(probe.astype(self.style.dtype), (batch, 1, width))
        y = attention(query, x, self.style)
        y = y + mlp(layer_norm("mlp_norm", self.style)(y), self.style)
        return y[:, 0]
