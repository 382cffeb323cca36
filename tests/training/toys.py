"""A tower and an objective that compile in a second."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.objectives.base import Pass
from big_ssl.training import accumulation


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
        scale = self.param("scale", nn.initializers.ones, (5,))
        factor = self.param("factor", nn.initializers.ones, ())
        return dict(x=nn.Dense(5)(output["pooled"]), factor=factor, shared=dict(scale=scale))


@dataclasses.dataclass(frozen=True)
class Toy:
    """Not linear in the batch where the scope is "batch", a mean over examples where "example"."""

    scope: str
    head: nn.Module = dataclasses.field(default_factory=Head)
    needs: tuple = (Pass("text", "text"),)
    head_of: str = ""

    def loss(self, features, batch, mutable, step):
        x = features["factor"] * features["shared"]["scale"] * jnp.tanh(features["x"])
        target = batch["text"]["ids"][:, :1] + step
        per_example = ((x - target) ** 2).sum(1)
        value = jnp.log(per_example.sum()) if self.scope == "batch" else per_example.mean()
        return value, {f"{self.scope}_mean": x.mean()}, dict(centre=mutable["centre"] + x.mean())

    def initial_mutable(self):
        return dict(centre=jnp.zeros(()))

    def project(self, head_params):
        return head_params


def microbatched(system, count, ways):
    """System.loss from microbatches by plain autodiff, all of their activations kept: a function of (params,
    mutable, batch, key, step, teacher) -> (loss, the encoders' states' mean).

    Over n devices a microbatch has a part of each device's examples.
    """

    def order(size):
        return np.arange(size).reshape(ways, count, -1).swapaxes(0, 1).reshape(count, -1)

    def merge(*parts):
        return jnp.concatenate(parts)[np.argsort(order(sum(map(len, parts))).ravel())]

    def loss(params, mutable, batch, key, step, teacher=None):
        found, values, states = [], [], []
        for i, part_key in enumerate(jax.random.split(key, count)):
            piece = jax.tree.map(lambda x, i=i: x[order(len(x))[i]], batch)
            features, encoders = system.features(params, mutable["encoders"], piece, part_key, teacher)
            coupled = [name for name in features if system.terms[name].objective.scope == "batch"]
            found.append(accumulation._parted({name: features.pop(name) for name in coupled}))
            states.append(encoders)
            values.append(system.combine(features, piece, mutable["objectives"], step)[0])
        own = jax.tree.map(merge, *(part[0] for part in found))
        whole = accumulation._whole(own, found[0][1])
        value, _ = system.combine(whole, batch, mutable["objectives"], step)
        return value + sum(values) / count, jax.tree.map(lambda *s: sum(s) / count, *states)

    return loss
