"""A tower and an objective that compile in a second."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from big_ssl.objectives.base import Pass


class Tower(nn.Module):
    """Random in training, and counting the forward passes that reach its statistics."""

    @nn.compact
    def __call__(self, ids, mask, train=False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        x = nn.Dense(6)(ids.astype(jnp.float32))
        if train:
            mean.value = 0.5 * mean.value + 0.5 * x.mean()
        return dict(pooled=nn.Dropout(0.5, deterministic=not train)(x))


class Head(nn.Module):
    @nn.compact
    def __call__(self, outputs):
        (output,) = outputs.values()
        return dict(x=nn.Dense(5)(output["pooled"]), factor=self.param("factor", nn.initializers.ones, ()))


@dataclasses.dataclass(frozen=True)
class Toy:
    """Not linear in the batch where the scope is "batch", a mean over examples where "example"."""

    scope: str
    head: nn.Module = dataclasses.field(default_factory=Head)
    needs: tuple = (Pass("text", "text"),)
    head_of: str = ""

    def loss(self, features, batch, mutable, step):
        x = features["factor"] * jnp.tanh(features["x"])
        target = batch["text"]["ids"][:, :1] + step
        per_example = ((x - target) ** 2).sum(1)
        value = jnp.log(per_example.sum()) if self.scope == "batch" else per_example.mean()
        return value, {f"{self.scope}_mean": x.mean()}, dict(centre=mutable["centre"] + x.mean())

    def initial_mutable(self):
        return dict(centre=jnp.zeros(()))

    def project(self, head_params):
        return head_params
