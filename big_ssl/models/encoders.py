"""Encoders by name, as configs choose them."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.models import bert, efficientnet, resnet, text_transformer, vit
from big_ssl.parallel.stacked import is_stacked


def efficientnet_from(strides, **options) -> efficientnet.EfficientNet:
    """EfficientNet with the published stages at these seven strides."""
    stages = tuple(
        stage._replace(stride=stride) for stage, stride in zip(efficientnet.B0_STAGES, strides, strict=True)
    )
    return efficientnet.EfficientNet(stages=stages, **options)


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "efficientnet": efficientnet_from,
    "resnet": resnet.ModifiedResNet,
    "vit": vit.ViT,
    "bert": bert.Bert,
    "text_transformer": text_transformer.TextTransformer,
}
# Which of their layers are in stacks when scanned, for models/layer_layouts.py.
STACKS = {
    "efficientnet": efficientnet.STACKS,
    "resnet": resnet.STACKS,
    "vit": vit.STACKS,
    "bert": bert.STACKS,
    "text_transformer": text_transformer.STACKS,
}
# Those that read tokens, and so are built for a tokenizer.
TEXT_ENCODERS = ("bert", "text_transformer")


def compute_dtypes(params, dtype):
    """The dtype in which an encoder of compute dtype `dtype` reads each parameter, in a tree like params.

    Kernels, embeddings and tokens are cast to it before anything else. Scales and biases of norms are
    read in float32, and so are position tables of images, which may be resized first.
    """

    def read(path, leaf):
        resized = str(getattr(path[-1], "key", "")) == "position_embedding"
        vector = leaf.ndim - is_stacked(path) < 2
        return leaf.dtype if vector or resized else jnp.dtype(dtype)

    return jax.tree_util.tree_map_with_path(read, params)


def build(config: Mapping, dtype, vocab_size: int, text_length: int, remat: str = "none") -> nn.Module:
    """The encoder that config["kind"] names, from its other keys.

    dtype: of the computation; vocab_size, text_length: what the tokenizer gives a text tower;
    remat: what the backward pass computes again, a name in layer_stack.REMAT_POLICIES.
    """
    options = {key: value for key, value in config.items() if key != "kind"}
    if config["kind"] in TEXT_ENCODERS:
        # A published tower may have more positions than its texts are long.
        options = dict(vocab_size=vocab_size, max_len=text_length) | options
    return ENCODERS[config["kind"]](dtype=jnp.dtype(dtype), remat=remat, **options)
