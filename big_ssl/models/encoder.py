"""The base class of encoders; their descriptions make other code independent of the encoder's type."""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.models import input_channels
from big_ssl.models.flops import forward_flops
from big_ssl.parallel.stacked import SUFFIX


class Encoder(nn.Module):
    """The base of all encoders. Its __call__ returns a dict with the keys `outputs`.

    input: "image", __call__(images: float[B, H, W, C], train), or "text", __call__(ids: int32[B, L],
      mask: bool[B, L], train).
    takes_several_sizes: whether `images` may be a tuple of batches of several sizes, for one run.
    has_attention_maps: whether vit.attention_maps reads the layers.
    stacks: {regular expression of a layer's prefix: index of the first layer in the stack}, of a scanned
      encoder; see models/layer_layouts.py. layers_per_entry: how many layers, as layer_id counts them, one
      entry of a stack has.
    channels: C of the images, an option of the encoders that can have other than three.
    """

    input: ClassVar[Literal["image", "text"]] = "image"
    takes_several_sizes: ClassVar[bool] = False
    has_attention_maps: ClassVar[bool] = False
    stacks: ClassVar[Mapping[str, int]] = {}
    channels = 3  # without an annotation it is no field of a module; encoders with the option declare one
    layers_per_entry: ClassVar[int] = 1

    @property
    def outputs(self) -> tuple[str, ...]:
        """The keys of the dict that __call__ returns.

        pooled: float32[B, D]. cls: float32[B, D], the class token. registers: [B, R, D]. patches: [B, N, D],
        or [B, H, W, D] for a convolutional network. tokens: [B, L, D] of a text. layers: outputs of
        intermediate layers, only for calls that request them. pyramid: maps of growing strides, a tuple of
        dtype[B, H_i, W_i, D_i]; where nothing reads them, the compiler removes them.
        """
        raise NotImplementedError

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """The ratios of the image's sides to those of each map of `pyramid`; () without that output."""
        return ()

    @property
    def first_kernel(self) -> str:
        """The path of the kernel that reads the channels of images, [h, w, C, D]; "" without one."""
        return ""

    @property
    def num_layers(self) -> int:
        """How many layers `layer_id` counts; 0 for an encoder without such layers."""
        return 0

    def layer_id(self, path: Sequence[str]) -> int:
        """Which layer a parameter belongs to, for layer decay.

        Args:
          path: the parameter's path within the encoder, such as ("layer3", "query", "kernel").

        Returns:
          0 before the layers, i + 1 in layer i, num_layers + 1 after them; for a stack its first entry's id.
        """
        raise NotImplementedError

    def resize_params(self, name: str, array, shape: tuple[int, ...]):
        """A parameter for another image size, text length, or number of channels.

        Args:
          name: its path within the encoder, such as "position_embedding".
          array: its value, of another shape.
          shape: the new shape.

        Returns:
          The resized array; None if this parameter does not depend on these, or can't be resized.
        """
        return input_channels.adapted_kernel(array, shape) if name == self.first_kernel else None

    def flops(self, *shape: int) -> int:
        """FLOPs of a forward pass on a batch of this shape, [B, H, W, C] or [B, L], two a multiply-add; the
        same for every implementation of attention."""
        dtypes = (jnp.float32,) if self.input == "image" else (jnp.int32, jnp.bool_)
        inputs = [jax.ShapeDtypeStruct(shape, dtype) for dtype in dtypes]
        variables = jax.eval_shape(self.init, jax.random.key(0), *inputs)
        return forward_flops(self.apply, variables, *inputs)


class TransformerEncoder(Encoder):
    """An encoder with a field `depth` and the layers "layer<i>", or all of them in one stack."""

    stacks: ClassVar[Mapping[str, int]] = {"layer": 0}

    @property
    def num_layers(self) -> int:
        """All transformer layers."""
        return self.depth  # type: ignore[attr-defined]

    def layer_id(self, path: Sequence[str]) -> int:
        """As BEiT counts (Bao et al. 2022, arXiv 2106.08254, optim_factory.py of its code): the final norm
        and a pooling head come after the layers, embeddings and all else before them."""
        if path[0] in ("final_norm", "pooling"):
            return self.num_layers + 1
        if path[0] == f"layer{SUFFIX}":
            return 1
        layer = re.fullmatch(r"layer(\d+)", path[0])
        return int(layer[1]) + 1 if layer else 0
