"""The embedding of one tower of a published two-tower model, whose other tower was not published with it.

A model of one tower is read and evaluated, and its encoder can start a run; this head is not trained, so it
has no loss and no kind in a config.
"""

import dataclasses

import flax.linen as nn

from big_ssl.objectives.base import EncoderCall, Inputs, Provided


class EmbeddingHead(nn.Module):
    """Projects the pooled output of one encoder.

    Called with {its name: encoder outputs}; returns embedding: float32[B, embed_dim].
    embed_dim: None for the pooled output itself; bias: whether the projection has one.
    """

    embed_dim: int | None = None
    bias: bool = False

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        del train
        (outputs,) = inputs.values()
        pooled = outputs["pooled"]
        if self.embed_dim is not None:
            init = nn.initializers.normal(pooled.shape[-1] ** -0.5)
            pooled = nn.Dense(self.embed_dim, use_bias=self.bias, kernel_init=init, name="projection")(pooled)
        return dict(embedding=pooled)


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What a predictor reads of an objective. encoder: "image" or "text", which the head embeds."""

    head: EmbeddingHead
    encoder: str

    shares_head_with = ""

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        return {self.encoder: EncoderCall(self.encoder, self.encoder)}

    @property
    def provides(self):
        """Embeddings of images or of texts."""
        return {f"encode_{self.encoder}": Provided((self.encoder,), "embedding")}
