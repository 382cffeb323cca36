"""The contract between an objective and the one training step. See docs/architecture.md."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax


class Pass(NamedTuple):
    """One run of one encoder over one view; objectives that need equal passes share the run.

    encoder: a key of config.encoders; view: a key of the batch, "image" or "text" say.
    masked: with the view's mask (config.masks); teacher: by the averaged weights, in evaluation mode
    and without gradient; large: over pictures before they are shrunk (data/device_views.py). Of a view of
    n crops an image, outputs are [B, n, ...]; of one that has a mask, masked or not, they hold it too,
    under "mask"; of one whose pictures are mixed in training, how much of each is its own, under "share"
    (data/mixing.py).
    """

    encoder: str
    view: str
    masked: bool = False
    teacher: bool = False
    large: bool = False


class Objective(Protocol):
    """One weighted term of the loss: a frozen value with four parts.

    needs: the passes whose outputs it reads.
    head: a linen module with its own parameters, called with {pass: encoder output}; returns
      features, arrays with a leading example axis, scalars such as a temperature, and under "shared"
      arrays that all examples share, prototypes say. Where there are teacher passes it is called with
      those too, by the averaged parameters; what it returns then is in the features' "teacher".
    head_of: the term whose head's parameters it uses; "" for its own.
    scope: "batch" where the loss couples examples, "example" where it is a mean over them.
    loss: pure and float32, over the global batch.
    """

    @property
    def needs(self) -> tuple[Pass, ...]: ...

    @property
    def head(self) -> nn.Module: ...

    @property
    def head_of(self) -> str: ...

    @property
    def scope(self) -> Literal["batch", "example"]: ...

    def loss(self, features: Mapping[str, jax.Array], batch: Any, mutable: Any, step: jax.Array):
        """Returns (float32[], metrics, mutable): the unweighted term and the new `mutable`."""
        ...

    def initial_mutable(self) -> Any:
        """What the term keeps between steps (centres, say); {} for nothing."""
        ...

    def project(self, head_params):
        """Puts the head's parameters back into their allowed range after an update."""
        ...


class Plain:
    """Keeps nothing between steps and has no constraint: for objectives to say only what is otherwise."""

    def initial_mutable(self) -> Any:
        """Nothing is kept."""
        return {}

    def project(self, head_params):
        """No constraint."""
        return head_params
