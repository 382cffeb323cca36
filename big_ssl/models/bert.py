"""BERT's encoder (Devlin et al. 2019, arXiv 1810.04805), post-norm, exact GELU."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models import layer_stack
from big_ssl.models.attention import attention, of_encoder
from big_ssl.models.encoder import TransformerEncoder

_init = nn.initializers.normal(0.02)


class BertLayer(nn.Module):
    """One transformer layer. x: [B, L, D], mask: bool[B, 1, 1, L] (True = attend)."""

    heads: int
    mlp_dim: int
    dropout: float
    attention: str  # a name in attention.IMPLEMENTATIONS
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, mask, train: bool):
        y = self._drop(self._attention(x, mask), train)
        x = self._norm("attention_norm", x + y)
        y = nn.Dense(self.mlp_dim, kernel_init=_init, dtype=self.dtype, name="mlp_in")(x)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(x.shape[-1], kernel_init=_init, dtype=self.dtype, name="mlp_out")(y)
        return self._norm("mlp_norm", x + self._drop(y, train))

    def _attention(self, x, mask):
        split = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        query, key, value = (
            nn.Dense(x.shape[-1], kernel_init=_init, dtype=self.dtype, name=name)(x).reshape(split)
            for name in ("query", "key", "value")
        )
        y = attention(query, key, value, mask=mask, implementation=self.attention)
        return nn.Dense(x.shape[-1], kernel_init=_init, dtype=self.dtype, name="out")(y.reshape(x.shape))

    def _drop(self, x, train):
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _norm(self, name, x):
        return layer_norm(name, self.dtype)(x)


def layer_norm(name, dtype):
    """BERT's layer norm; flax computes its statistics in float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=1e-12, dtype=dtype, name=name)


class Bert(TransformerEncoder):
    """BERT encoder with learned positions.

    attention: its implementation, see models/attention.py. scan, remat: of the layers, see
      models/layer_stack.py.

    ids: int32[B, L], mask: bool[B, L], True for tokens, False for padding -> dict(
      pooled: float32[B, D], the last layer's [CLS] state; tokens: dtype[B, L, D]).
    Raises ValueError if L exceeds max_len.
    """

    vocab_size: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int | None = None  # 4 * width
    max_len: int = 512
    dropout: float = 0.1
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    input = "text"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Both always."""
        return ("pooled", "tokens")

    def resize_params(self, name, array, shape):
        """Position embeddings for shorter texts: the first rows, unchanged, since rows are independent."""
        cut = array[: shape[0]] if name == "position/embedding" else array
        return cut if cut.shape == shape else None

    @nn.compact
    def __call__(self, ids, mask, train: bool = False):
        if ids.shape[1] > self.max_len:
            raise ValueError(f"bert: {ids.shape[1]} tokens, but max_len is {self.max_len}")
        embed = dict(embedding_init=_init, dtype=self.dtype)
        x = nn.Embed(self.vocab_size, self.width, name="word", **embed)(ids)
        x += nn.Embed(self.max_len, self.width, name="position", **embed)(jnp.arange(ids.shape[1]))
        # One segment only, but the published checkpoints carry two rows.
        x += nn.Embed(2, self.width, name="token_type", **embed)(jnp.zeros_like(ids))
        x = layer_norm("embedding_norm", self.dtype)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        mlp_dim = self.mlp_dim or 4 * self.width
        x = layer_stack.apply_layers(
            functools.partial(BertLayer, self.heads, mlp_dim, self.dropout, of_encoder(self), self.dtype),
            "layer",
            range(self.depth),
            lambda layer, x, _: layer(x, mask[:, None, None, :], train),
            x,
            scan=self.scan,
            remat=self.remat,
        )
        return dict(pooled=x[:, 0].astype(jnp.float32), tokens=x)
