"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020 section 2.4), and SigLIP's."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.models import layer_stack
from big_ssl.models.encoder import TransformerEncoder
from big_ssl.models.transformer import Layer, layer_config, layer_norm

# Options of all encoders of a family; widths, depths and heads: CLIP's Tables 19 and 20.
CLIP = dict(causal=True, pooling="eot", activation="quick_gelu", epsilon=1e-5, kernel_init="clip")
# Yang et al. 2022, arXiv 2204.03610, model/text_encoder/transformer.py of its code.
UNICL = CLIP | dict(epsilon=1e-12, kernel_init="unicl")
SIGLIP = dict(causal=False, pooling="last", activation="gelu_tanh", epsilon=1e-6, kernel_init="glorot")

# Initial standard deviations of (the tokens' embeddings, the position table), if they are not width ** -0.5.
_EMBEDDING_STD = {"clip": (0.02, 0.01), "unicl": (0.02, 0.02)}


class TextTransformer(TransformerEncoder):
    """Pre-norm transformer over tokens with learned positions.

    causal: whether a token sees only itself and those before it. pooling: "eot", the state at the first
      eot_id, which a causal encoder needs; "last", at the last position, padding or not (SigLIP).
    eot_id: None is the vocabulary's last id, as in CLIP. OpenAI's argmax over ids also gives its first
      occurrence. A text without it is pooled at its first token.
    activation, kernel_init: names in models.transformer; mlp_dim: None is 4 * width.
    attention: its implementation, see models/attention.py. scan, remat: of the layers, see
      models/layer_stack.py.

    ids: int32[B, L]; mask: bool[B, L], not read: causal attention never sees the padding after the end,
    and SigLIP was trained to see its padding -> dict(pooled: float32[B, D], tokens: dtype[B, L, D]),
    both after the final norm. Raises ValueError if L exceeds max_len.
    """

    vocab_size: int
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_dim: int | None = None
    max_len: int = 77
    causal: bool = True
    pooling: str = "eot"
    eot_id: int | None = None
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    kernel_init: str = "clip"
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    input = "text"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Both always."""
        return ("pooled", "tokens")

    @nn.compact
    def __call__(self, ids, mask=None, train: bool = False):
        if ids.shape[1] > self.max_len:
            raise ValueError(f"text transformer: {ids.shape[1]} tokens, but max_len is {self.max_len}")
        config = layer_config(self)
        x = layer_stack.apply_layers(
            functools.partial(Layer, config, self.causal),
            "layer",
            range(self.depth),
            lambda layer, x, _: layer(x, train=train),
            self._embed(ids),
            scan=self.scan,
            remat=self.remat,
        )
        x = layer_norm("final_norm", config)(x)
        return dict(pooled=self._pool(x, ids).astype(jnp.float32), tokens=x)

    def _embed(self, ids):
        tokens, positions = _EMBEDDING_STD.get(self.kernel_init, (self.width**-0.5,) * 2)
        embed = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=nn.initializers.normal(tokens),
            dtype=self.dtype,
            name="token",
        )
        table = self.param(
            "position_embedding", nn.initializers.normal(positions), (self.max_len, self.width)
        )
        return embed(ids) + table[: ids.shape[1]].astype(self.dtype)

    def _pool(self, x, ids):
        if self.pooling == "last":
            return x[:, -1]
        if self.pooling != "eot":
            raise ValueError(f"text transformer: pooling is {self.pooling!r}; there are eot, last")
        eot_id = self.vocab_size - 1 if self.eot_id is None else self.eot_id
        first = jnp.argmax(ids == eot_id, axis=1)
        return jnp.take_along_axis(x, first[:, None, None], axis=1)[:, 0]
