"""Image-text contrastive learning: ALIGN, CLIP and SigLIP are settings of this one objective."""

import dataclasses
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.losses.contrastive import l2_normalize, sigmoid_contrastive, softmax_contrastive
from big_ssl.losses.pairwise import IMPLEMENTATIONS, Pairwise
from big_ssl.objectives.base import Context, EncoderCall, Inputs, Provided, StatelessObjective, Sum

# The smallest temperature that an update may leave: logits within +-100, CLIP's cap.
_MIN_TEMPERATURE = 0.01


class ContrastiveHead(nn.Module):
    """Projects both towers' pooled outputs into one space of `dim` dimensions.

    Called with {"image": encoder outputs, "text": encoder outputs}, one of them or both.

    image_projection: ALIGN has none, its pooled image is the embedding; text_bias: ALIGN's
    text projection has a bias, CLIP's has not. temperature_form: "raw" learns the temperature
    itself (ALIGN), "log" the logarithm of its inverse (CLIP), whose steps are relative.
    logit_bias: the start of a learned number added to every logit (SigLIP), None for none.
    normalize: whether embeddings leave with length 1; not the config's to choose.
    """

    dim: int
    image_projection: bool = False
    text_bias: bool = True
    temperature: float = 1.0
    temperature_form: str = "raw"
    logit_bias: float | None = None
    normalize: bool = True

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        """Returns image, text: float32[B, dim], L2-normalised by default, of the towers given, and
        temperature: float32[], and logit_bias: float32[] where there is one.
        """
        del train
        features = dict(temperature=self._temperature())
        if self.logit_bias is not None:
            init = nn.initializers.constant(self.logit_bias)
            features["logit_bias"] = self.param("logit_bias", init, ())
        if "image" in inputs:
            features["image"] = self._image(inputs["image"]["pooled"])
        if "text" in inputs:
            text = inputs["text"]["pooled"]
            features["text"] = self._project("text_projection", text, self.text_bias)
        if self.normalize:
            features |= {name: l2_normalize(features[name]) for name in ("image", "text") if name in features}
        return features

    def _image(self, pooled):
        if self.image_projection:
            return self._project("image_projection", pooled, bias=False)
        if pooled.shape[-1] != self.dim:
            raise ValueError(
                f"contrastive: dim is {self.dim} but the image tower gives {pooled.shape[-1]}; "
                "set dim to that or image_projection to True"
            )
        return pooled

    def _project(self, name, pooled, bias):
        init = nn.initializers.normal(pooled.shape[-1] ** -0.5)
        return nn.Dense(self.dim, use_bias=bias, kernel_init=init, name=name)(pooled)

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
    weight 1 sums both directions (ALIGN) and 1/2 averages them (CLIP)."""

    head: ContrastiveHead
    pairwise: Pairwise
    label_smoothing: float = 0.0

    scope: ClassVar[Literal["batch", "example"]] = "batch"

    @property
    def inputs(self) -> Inputs:
        """See objectives.base.Objective."""
        return dict(image=EncoderCall("image", "image"), text=EncoderCall("text", "text"))

    @property
    def provides(self):
        """Embeddings of images and of texts."""
        return dict(encode_image=Provided(("image",), "image"), encode_text=Provided(("text",), "text"))

    def loss(self, features, fields, state, step):
        """See objectives.base.Objective."""
        del fields, step
        scalars = {name: x for name, x in features.items() if name in ("temperature", "logit_bias")}
        image, text, temperature = (features[name] for name in ("image", "text", "temperature"))
        if "logit_bias" in features:
            bias = features["logit_bias"]
            loss, metrics = sigmoid_contrastive(image, text, temperature, bias, pairwise=self.pairwise)
        else:
            smoothing = self.label_smoothing
            loss, metrics = softmax_contrastive(image, text, temperature, smoothing, pairwise=self.pairwise)
        # A loss over all pairs is no mean over examples: it is one value of the whole batch.
        return Sum(loss), {name: Sum(value) for name, value in (metrics | scalars).items()}, state

    def project(self, head_params):
        """Keeps a softmax's temperature at or above 0.01; SigLIP sets no bound.

        After the update, not in the forward pass, where a clip would cut the gradient and the
        temperature could never come back.
        """
        if "logit_bias" in head_params:
            return head_params
        if "temperature" in head_params:
            return head_params | dict(temperature=jnp.maximum(head_params["temperature"], _MIN_TEMPERATURE))
        limit = -math.log(_MIN_TEMPERATURE)
        return head_params | dict(logit_scale=jnp.minimum(head_params["logit_scale"], limit))


def build(
    dim: int,
    image_projection: bool = False,
    text_bias: bool = True,
    temperature: float = 1.0,
    temperature_form: str = "raw",
    logit_bias: float | None = None,
    label_smoothing: float = 0.0,
    form: str = "ring",
    *,
    context: Context,
) -> Contrastive:
    """Image-text contrastive learning.

    Args:
      dim: width of the joint embedding; see ContrastiveHead for this and the options up to logit_bias.
      image_projection: whether images are projected, without a bias.
      text_bias: whether the texts' projection has a bias.
      temperature: its initial value.
      temperature_form: "raw" or "log".
      logit_bias: its initial value, which makes the loss SigLIP's; None for the softmax.
      label_smoothing: of the softmax's targets.
      form: the implementation, see losses.pairwise.

    Raises:
      ValueError: for an unknown form, or label smoothing without a softmax.
    """
    if form not in IMPLEMENTATIONS:
        raise ValueError(f"contrastive.form is {form!r}; there are {', '.join(IMPLEMENTATIONS)}")
    if label_smoothing and logit_bias is not None:
        raise ValueError("contrastive: label_smoothing is the softmax's; with a logit_bias it must be 0")
    head = ContrastiveHead(dim, image_projection, text_bias, temperature, temperature_form, logit_bias)
    return Contrastive(head, Pairwise(form, context.mesh), label_smoothing)
