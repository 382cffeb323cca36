"""The table of encoders, from which configs choose by `kind`."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from big_ssl.models import bert, efficientnet, resnet, swin, text_transformer, vit
from big_ssl.models.encoder import Encoder
from big_ssl.parallel.stacked import is_stacked


def efficientnet_from(strides=(), stages=(), **options) -> efficientnet.EfficientNet:
    """EfficientNet with the published stages at these seven strides, or with other stages: the rows of
    efficientnet.Stage."""
    rows = tuple(efficientnet.Stage(*stage) for stage in stages) or tuple(
        stage._replace(stride=stride) for stage, stride in zip(efficientnet.B0_STAGES, strides, strict=True)
    )
    return efficientnet.EfficientNet(stages=rows, **options)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "efficientnet": efficientnet_from,
    "resnet": resnet.ModifiedResNet,
    "vit": vit.ViT,
    "swin": swin.Swin,
    "bert": bert.Bert,
    "text_transformer": text_transformer.TextTransformer,
}


# Names in the paths of matrices that are read in float32.
_IN_FLOAT32 = {"position_embedding", "position_bias"}


def compute_dtypes(params, dtype):
    """The dtype in which an encoder of compute dtype `dtype` reads each parameter, in a tree like params.

    Kernels, embeddings and tokens are cast to it before anything else. Scales and biases of norms are
    read in float32, and so are position tables of images, which may be resized first, and biases by
    position, which are added to scores in float32.
    """

    def read(path, leaf):
        names = {str(getattr(key, "key", "")) for key in path}
        vector = leaf.ndim - is_stacked(path) < 2
        return leaf.dtype if vector or names & _IN_FLOAT32 else jnp.dtype(dtype)

    return jax.tree_util.tree_map_with_path(read, params)


def build(config: Mapping, dtype, vocab_size: int, text_length: int, remat: str = "none") -> Encoder:
    """The encoder of one entry of config.encoders.

    Args:
      config: `kind`, a name in ENCODERS, and the encoder's options.
      dtype: the compute dtype.
      vocab_size: the tokenizer's, for a text encoder.
      text_length: tokens of a text, for a text encoder whose `max_len` is not set.
      remat: a name in layer_stack.REMAT_POLICIES.
    """
    make, options = ENCODERS[config["kind"]], {key: value for key, value in config.items() if key != "kind"}
    if getattr(make, "input", "image") == "text":  # a builder, which is no class, makes an image encoder
        # A published text encoder may have more positions than its texts are long.
        options = dict(vocab_size=vocab_size, max_len=text_length) | options
    return make(dtype=jnp.dtype(dtype), remat=remat, **options)
