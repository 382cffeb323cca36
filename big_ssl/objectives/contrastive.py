"""Image-text contrastive learning: ALIGN, CLIP, SigLIP and UniCL are settings of this one objective."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.contrastive import l2_normalize, sigmoid_contrastive, softmax_contrastive
from big_ssl.losses.pairwise import IMPLEMENTATIONS, Pairwise
from big_ssl.objectives.base import (
    BatchField,
    Context,
    EncoderCall,
    Inputs,
    Provided,
    StatelessObjective,
    Sum,
)

# The lower bound of the temperature after an update: logits within +-100, CLIP's cap.
_MIN_TEMPERATURE = 0.01


class ContrastiveHead(nn.Module):
    """Projects both towers' pooled outputs into one space of `embed_dim` dimensions.

    Called with {"image": encoder outputs, "text": encoder outputs}, one of them or both.

    image_projection: ALIGN has none, its pooled image is the embedding; text_projection_bias: ALIGN's
    text projection has a bias, CLIP's has not. temperature_form: "raw" learns the temperature
    itself (ALIGN), "log" the logarithm of its inverse (CLIP), whose steps are relative.
    logit_bias: the initial value of a learned bias added to every logit (SigLIP), None for no bias.
    projection_std: the standard deviation of the projections' initial kernels, None for width ** -0.5 (CLIP).
    """

    embed_dim: int
    image_projection: bool = False
    text_projection_bias: bool = True
    temperature: float = 1.0
    temperature_form: str = "raw"
    logit_bias: float | None = None
    projection_std: float | None = None

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        """Returns image, text: float32[B, embed_dim], L2-normalised, for the inputs present;
        temperature: float32[]; logit_bias: float32[] if there is one. In evaluation also projected_image and
        projected_text, the same before normalisation.
        """
        features = dict(temperature=self._temperature())
        if self.logit_bias is not None:
            init = nn.initializers.constant(self.logit_bias)
            features["logit_bias"] = self.param("logit_bias", init, ())
        projected = {}
        if "image" in inputs:
            projected["image"] = self._image(inputs["image"]["pooled"])
        if "text" in inputs:
            text = inputs["text"]["pooled"]
            projected["text"] = self._project("text_projection", text, self.text_projection_bias)
        features |= {name: l2_normalize(x) for name, x in projected.items()}
        return features if train else features | {f"projected_{name}": x for name, x in projected.items()}

    def _image(self, pooled):
        if self.image_projection:
            return self._project("image_projection", pooled, bias=False)
        if pooled.shape[-1] != self.embed_dim:
            raise ValueError(
                f"contrastive: embed_dim is {self.embed_dim} but the image encoder gives {pooled.shape[-1]}; "
                "set embed_dim to that or image_projection to True"
            )
        return pooled

    def _project(self, name, pooled, bias):
        init = nn.initializers.normal(self.projection_std or pooled.shape[-1] ** -0.5)
        return nn.Dense(self.embed_dim, use_bias=bias, kernel_init=init, name=name)(pooled)

    def _temperature(self):
        if self.temperature_form == "raw":
            return self.param("temperature", nn.initializers.constant(self.temperature), ())
        if self.temperature_form != "log":
            raise ValueError(
                f'contrastive: temperature_form is {self.temperature_form!r}; "raw" and "log" are known'
            )
        init = nn.initializers.constant(-math.log(self.temperature))
        return jnp.exp(-self.param("logit_scale", init, ()))


@dataclasses.dataclass(frozen=True)
class Contrastive(StatelessObjective):
    """The contrastive objective: sigmoid (SigLIP) where the head has a logit bias, else softmax, whose
    weight 1 sums both directions (ALIGN) and 1/2 averages them (CLIP, UniCL).

    positives: the field of the batch whose equal values mark positives, "" for the pairs alone.
    temperature_clamp: whether a softmax's temperature has a lower bound.
    """

    head: ContrastiveHead
    pairwise: Pairwise
    label_smoothing: float = 0.0
    positives: str = ""
    temperature_clamp: bool = True

    scope: ClassVar[Literal["batch", "example"]] = "batch"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        calls = dict(image=EncoderCall("image", "image"), text=EncoderCall("text", "text"))
        return calls | (dict(positives=BatchField(self.positives)) if self.positives else {})

    @property
    def provides(self):
        """Embeddings of images and of texts, and the scale of their similarities."""
        return dict(
            encode_image=Provided(("image",), "projected_image"),
            encode_text=Provided(("text",), "projected_text"),
            zero_shot=Provided((), "temperature"),
        )

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective.

        fields: positives, if the config names them: int32[B], or dict(key: uint32[B, 2], valid: bool[B]).
        """
        del step
        scalars = {name: x for name, x in features.items() if name in ("temperature", "logit_bias")}
        image, text, temperature = (features[name] for name in ("image", "text", "temperature"))
        options = dict(pairwise=self.pairwise) | self._relation(fields)
        if "logit_bias" in features:
            bias = features["logit_bias"]
            loss, metrics = sigmoid_contrastive(image, text, temperature, bias, **options)
        else:
            smoothing = self.label_smoothing
            loss, metrics = softmax_contrastive(image, text, temperature, smoothing, **options)
        # A loss over all pairs is no mean over examples: it is one value for the whole batch.
        return Sum(loss), {name: Sum(value) for name, value in (metrics | scalars).items()}, state

    def _relation(self, fields):
        """The positives and the padding that the losses take, from a label or an identity."""
        value = fields.get("positives")
        if isinstance(value, Mapping) and set(value) == {"key", "valid"}:
            return dict(positives=value["key"], valid=value["valid"])
        if self.positives and (isinstance(value, Mapping) or value.ndim != 1):
            raise ValueError(
                f"contrastive.positives is {self.positives!r}; it must be a field of kind label or identity"
            )
        return dict(positives=value)

    def project(self, head_params):
        """Keeps a softmax's temperature at or above 0.01; SigLIP and UniCL set no bound.

        After the update, not in the forward pass, where a clip would cut the gradient and the
        temperature could never come back.
        """
        if "logit_bias" in head_params or not self.temperature_clamp:
            return head_params
        if "temperature" in head_params:
            return head_params | dict(temperature=jnp.maximum(head_params["temperature"], _MIN_TEMPERATURE))
        limit = -math.log(_MIN_TEMPERATURE)
        return head_params | dict(logit_scale=jnp.minimum(head_params["logit_scale"], limit))


def build(
    embed_dim: int,
    image_projection: bool = False,
    text_projection_bias: bool = True,
    temperature: float = 1.0,
    temperature_form: str = "raw",
    logit_bias: float | None = None,
    label_smoothing: float = 0.0,
    implementation: str = "ring",
    positives: str = "",
    temperature_clamp: bool = True,
    projection_std: float | None = None,
    *,
    context: Context,
) -> Contrastive:
    """Image-text contrastive learning.

    With `positives`, UniCL's (arXiv 2204.03610, equations 2 to 4): a row's targets are split evenly over its
    positives, a column's over the column's positives. UniCL's code averages examples and directions, weight
    1/2; Florence's equation 1 sums both (arXiv 2111.11432), which is the batch size as the weight.

    Args:
      embed_dim: width of the joint embedding; see ContrastiveHead for this and the options up to logit_bias.
      image_projection: whether images are projected, without a bias.
      text_projection_bias: whether the texts' projection has a bias.
      temperature: its initial value.
      temperature_form: "raw" or "log".
      logit_bias: its initial value, which makes the loss SigLIP's; None for the softmax.
      label_smoothing: of the softmax's targets.
      implementation: of the reduction over all pairs, see losses.pairwise.
      positives: the batch field, of kind identity or label, whose equal values mark positives; "" pairs each
        image with its own text.
      temperature_clamp: False sets no lower bound to a softmax's temperature (UniCL); a sigmoid's has none.
      projection_std: of the projections' initial kernels, 0.02 in UniCL's code (model/model.py), None for
        width ** -0.5.

    Raises:
      ValueError: for an unknown implementation, or label smoothing without a softmax.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"contrastive.implementation is {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    if label_smoothing and logit_bias is not None:
        raise ValueError("contrastive: label_smoothing is the softmax's; with a logit_bias it must be 0")
    scalars = (temperature, temperature_form, logit_bias)
    head = ContrastiveHead(
        embed_dim, image_projection, text_projection_bias, *scalars, projection_std=projection_std
    )
    pairwise = Pairwise(implementation, context.mesh)
    return Contrastive(head, pairwise, label_smoothing, positives, temperature_clamp)
