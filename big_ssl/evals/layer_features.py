"""Tokens by name and attention of an image encoder's layers, as users of DINOv2 and timm read them."""

import contextlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from big_ssl.evals.model_inputs import Images
from big_ssl.evals.predictor_part import PredictorPart
from big_ssl.models import vit

_NAMES = ("cls", "registers", "patches")


@jax.tree_util.register_pytree_node_class
class Tokens(dict[str, np.ndarray]):
    """The tokens of a layer by name, those that the model has; another name is a KeyError that lists them.

    cls: float32[B, D], the class token. registers: float32[B, R, D]. patches: float32[B, N, D], N row by row,
    or float32[B, h, w, D], channels last, if they were requested as a grid.
    """

    def __missing__(self, name):
        raise KeyError(f"this model has no {name}; its tokens are {', '.join(self)}")

    def tree_flatten(self):
        """(the arrays, their names), for jax.tree."""
        return tuple(self.values()), tuple(self)

    @classmethod
    def tree_unflatten(cls, names, arrays):
        """Tokens of what tree_flatten returns."""
        return cls(zip(names, arrays, strict=True))


class LayerFeatures(PredictorPart):
    """The methods of a Predictor that read the layers of its image encoder.

    B images, D: the encoder's width; T: all tokens of a ViT, which are the class token and R registers, if it
    has them, then N patches, row by row. An image of H x W pixels, as the encoder gets it, has a grid of
    h = H // patch by w = W // patch patches, N = h * w; what is left over at its right and bottom is not
    read. Positions are resized to any grid as the model's own code does.
    """

    def patch_features(self, images: Images, resize: bool = True) -> np.ndarray:
        """The finest features of images.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          resize: as in encode_image.

        Returns:
          float32[B, N, D] of a ViT, its patches after the final norm; float32[B, h, w, D] of a convolutional
          encoder, its last map.

        Raises:
          ValueError: for anything but such images, and for a model without an image encoder.
        """
        return self._read("patch_features", _patches, images, resize)

    def image_tokens(self, images: Images, *, reshape: bool = False, resize: bool = True) -> Tokens:
        """The tokens of a ViT's last layer, after its final norm.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          reshape: whether patches come as a grid.
          resize: as in encode_image.

        Returns:
          Tokens: cls float32[B, D] and registers float32[B, R, D], if the model has them, and patches
          float32[B, N, D], or float32[B, h, w, D] with reshape.

        Raises:
          ValueError: for anything but such images, and for a model without transformer layers of images.
        """
        return self._read("image_tokens", _last_tokens, images, resize, reshape)

    def intermediate_layers(
        self,
        images: Images,
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        norm: bool = True,
        resize: bool = True,
    ) -> list[Tokens]:
        """The tokens of some layers of a ViT.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          n: how many of the last layers; or the indices of layers, negative ones from the end.
          reshape: whether patches come as a grid.
          norm: whether the tokens go through the encoder's final norm.
          resize: as in encode_image.

        Returns:
          For each layer, in ascending order for a number and else in the order of the indices, Tokens: cls
          float32[B, D] and registers float32[B, R, D], if the model has them, and patches float32[B, N, D],
          or float32[B, h, w, D] with reshape.

        Raises:
          ValueError: for anything but such images, layers that there are not, and a model without transformer
            layers of images.
        """
        options = (self._layer_indices("intermediate_layers", n), reshape, norm)
        return self._read("intermediate_layers", _layers, images, resize, *options)

    def attention_maps(self, images: Images, layer: int = -1, *, resize: bool = True) -> np.ndarray:
        """The attention weights of a ViT's layer: of every token to every token.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          layer: its index, a negative one from the end.
          resize: as in encode_image.

        Returns:
          float32[B, heads, T, T]: [:, :, i, j] is how much token i attends to token j, and rows sum to one.

        Raises:
          ValueError: for anything but such images, a layer that there is not, and a model without attention
            layers of images.
        """
        (layer,) = self._layer_indices("attention_maps", [layer])
        return self._read("attention_maps", vit.attention_maps, images, resize, layer)

    def class_attention(self, images: Images, layer: int = -1, *, resize: bool = True) -> np.ndarray:
        """How much the class token attends to each patch, in a ViT's layer.

        Args:
          images: uint8[B, H, W, 3], or other Images.
          layer: its index, a negative one from the end.
          resize: as in encode_image.

        Returns:
          float32[B, heads, h, w], without the attention to the class token itself and to registers, so that
          the sum over a map is at most one.

        Raises:
          ValueError: for anything but such images, a layer that there is not, and a model without a class
            token in attention layers.
        """
        (layer,) = self._layer_indices("class_attention", [layer])
        return self._read("class_attention", class_attention, images, resize, layer)

    def _layer_indices(self, method, n):
        """The indices in [0, depth) of the last n layers, or of these layers."""
        self._require(method)
        depth = self.encoder.num_layers
        if isinstance(n, int | np.integer):
            if not 0 < n <= depth:
                raise ValueError(
                    f"{method}: the last {n} layers are requested; the image encoder has {depth}"
                )
            return tuple(range(depth - n, depth))
        if not len(n) or not all(-depth <= i < depth for i in n):
            raise ValueError(f"{method}: layers {list(n)} are requested; the image encoder has {depth}")
        return tuple(int(i) % depth for i in n)


def class_attention(model: vit.ViT, variables: Mapping, images, layer: int = -1):
    """For Predictor.apply: see LayerFeatures.class_attention. images: float[B, H, W, 3], normalised."""
    weights = vit.attention_maps(model, variables, images, layer, queries=1)[:, :, 0, 1 + model.registers :]
    return weights.reshape(*weights.shape[:2], *_grid(model, images))


def _patches(model: nn.Module, variables, images):
    outputs: Any = model.apply(variables, images)
    return outputs["patches"]


def _last_tokens(model, variables, images, reshape):
    outputs = model.apply(variables, images)
    return _tokens(outputs, _grid(model, images) if reshape else None)


def _layers(model, variables, images, indices, reshape, norm):
    with contextlib.nullcontext() if norm else nn.intercept_methods(_without_final_norm):
        layers = model.apply(variables, images, intermediate=indices)["layers"]
    grid = _grid(model, images) if reshape else None
    return [_tokens(jax.tree.map(operator.itemgetter(i), layers), grid) for i in range(len(indices))]


def _without_final_norm(call, inputs, options, context):
    """Returns the input of the final norm in place of its output."""
    return inputs[0] if context.module.name == "final_norm" else call(*inputs, **options)


def _tokens(outputs, grid):
    """Tokens of a ViT's outputs, patches as a grid unless that is None."""
    tokens = Tokens({name: outputs[name] for name in _NAMES if name in outputs})
    if grid is not None:
        patches = tokens["patches"]
        tokens["patches"] = patches.reshape(len(patches), *grid, -1)
    return tokens


def _grid(model, images):
    return tuple(side // model.patch for side in images.shape[1:3])
