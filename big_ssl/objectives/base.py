"""The contract between an objective and the one training step. See docs/architecture.md."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp


class EncoderCall(NamedTuple):
    """One run of one encoder over one view. Objectives that need equal calls share the run.

    encoder: a key of config.encoders. view: a key of the stream's batch, such as "image" or "text".
    outputs: the encoder's outputs that the objective reads, such as "pooled" or "patches"; calls that differ
      in these and in `layers` alone share the run.
    layers: for the output "layers", the indices of the layers, negative ones from the end. The head gets it
      as a tuple in this order, for each layer a dict of its tokens after the final norm, as in ViT.
    masked: apply the view's mask. teacher: use EMA weights, in evaluation mode, without gradient.
    high_res: use images before downsampling.

    Outputs are [B, n, ...] for views with n crops per image. They also contain "mask" if the view has one,
    and "mix_ratio" if mixup or CutMix is on.
    """

    encoder: str
    view: str
    outputs: tuple[str, ...] = ("pooled",)
    layers: tuple[int, ...] = ()
    masked: bool = False
    teacher: bool = False
    high_res: bool = False

    @property
    def run(self) -> "EncoderCall":
        """The call without its outputs and layers: what tells apart the runs of an encoder."""
        return self._replace(outputs=(), layers=())


class BatchField(NamedTuple):
    """One field of the stream's batch, such as "label"."""

    name: str


Inputs = Mapping[str, EncoderCall | BatchField]


@flax.struct.dataclass
class Sum:
    """A mean's numerator and denominator: a sum over examples, masked patches or the like, and their number.

    The step adds up both over devices and microbatches, and divides once, so the mean is right however the
    batch is split. value: float32[]; count: float32[] or a number, without gradient. A count of 0, such as of
    boxes in a batch without any, divides by 1.
    """

    value: jax.Array | float
    count: jax.Array | float = 1

    @classmethod
    def of_mean(cls, mean, count) -> "Sum":
        """The sum of `count` values with this mean."""
        return cls(mean * count, count)

    @property
    def mean(self):
        """value / count; no gradient goes to the count."""
        count = jax.lax.stop_gradient(self.count)
        return self.value / jnp.where(count == 0, 1, count)


# A loss: one mean, or the sum of several means with different counts.
Loss = Sum | tuple[Sum, ...]


def mean_loss(loss: Loss) -> jax.Array:
    """float32[]: the mean of a loss, or the sum of the means of its terms."""
    return sum((x.mean for x in ((loss,) if isinstance(loss, Sum) else loss)), jnp.zeros(()))


class Provided(NamedTuple):
    """How a trained head implements a method of the predictor.

    inputs: the names of the objective's inputs that it needs. feature: the key of the result among the head's
    features in evaluation: embeddings before normalisation, logits of `head.classes` classes, or for
    zero_shot the temperature of similarities; then the features may also contain a "logit_bias".
    """

    inputs: tuple[str, ...]
    feature: str


class Objective(Protocol):
    """One weighted term of the loss: a frozen value.

    inputs: {the objective's name for it: an encoder call or a batch field} that it reads.
    head: a linen module with its own parameters, and running statistics if it has any, called with
      ({name: dict of encoder outputs, or a batch field}, train) and, in training, a "dropout" key. Returns
      features: arrays with a leading example axis, scalars such as a temperature, and under "shared" arrays
      without an example axis, such as prototypes. If some inputs are the teacher's, the head is called a
      second time, on these alone, with EMA parameters; the result is the features' "teacher".
    shares_head_with: the objective whose head's parameters it uses; "" for a separate head.
    scope: "batch" if the loss couples examples, "example" if it is a mean over examples.
    provides: {method of the predictor ("encode_image", "classify"): how the trained head implements it}.
      Evaluators and `big_ssl.load` require these names.
    """

    @property
    def inputs(self) -> Inputs: ...

    @property
    def head(self) -> nn.Module: ...

    @property
    def shares_head_with(self) -> str: ...

    @property
    def scope(self) -> Literal["batch", "example"]: ...

    @property
    def provides(self) -> Mapping[str, Provided]: ...

    def loss(
        self, features: Mapping[str, Any], fields: Mapping[str, Any], state: Any, step: jax.Array
    ) -> tuple[Loss, dict[str, Sum], Any]:
        """The unweighted loss of the global batch, in float32; a pure function.

        Args:
          features: what the head returned.
          fields: the batch fields among `inputs`, by the same names.
          state: what `initial_state` or the previous step's loss returned.
          step: int32[].

        Returns:
          The loss, metrics and the new state. A loss whose terms are means over different things, such as
          positives and all patches, is a tuple of their sums. With scope "example" it may be called on
          microbatches.
        """
        ...

    def initial_state(self) -> Any:
        """The objective's state between steps, such as centers; {} if it has none."""
        ...

    def project(self, head_params: Any) -> Any:
        """Puts the head's parameters back into their allowed range after an update."""
        ...


class StatelessObjective:
    """Defaults: a separate head that provides nothing, no state, no constraint."""

    shares_head_with: str = ""

    @property
    def provides(self) -> Mapping[str, Provided]:
        """Nothing."""
        return {}

    def initial_state(self) -> Any:
        """Nothing."""
        return {}

    def project(self, head_params: Any) -> Any:
        """No constraint."""
        return head_params


class Context(NamedTuple):
    """The run's settings that objectives are built with.

    mesh: batches are split over it. dtype: the compute dtype. schedule: builds a function of the step from
    a config's value, a number or a mapping. heads: {objective: its `head` options} on the same stream.
    encoders: the run's, {name: module}, which describe their outputs.
    """

    mesh: Any
    dtype: str
    schedule: Callable
    heads: Mapping[str, Any]
    encoders: Mapping[str, Any] = {}
