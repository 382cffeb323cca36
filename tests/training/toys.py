"""A tower and an objective that compile in a second."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.data.fields.text import Text
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.base import BatchField, EncoderCall, StatelessObjective, Sum
from big_ssl.training import train_step

FIELDS = dict(pairs=dict(text=Text(dict(text=1.0))))


class Tower(Encoder):
    """Random in training, and counting the forward passes that reach its statistics."""

    input = "text"
    outputs = ("pooled",)

    @nn.compact
    def __call__(self, ids, mask, train=False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        x = nn.Dense(6)(ids.astype(jnp.float32))
        if train:
            mean.value = 0.5 * mean.value + 0.5 * x.mean()
        return dict(pooled=nn.Dropout(0.5, deterministic=not train)(x))


class Head(nn.Module):
    """It has running statistics, too."""

    @nn.compact
    def __call__(self, inputs, train=False):
        scale = self.param("scale", nn.initializers.ones, (5,))
        factor = self.param("factor", nn.initializers.ones, ())
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        x = nn.Dense(5)(inputs["text"]["pooled"])
        if train:
            mean.value = 0.5 * mean.value + 0.5 * x.mean()
        x = nn.Dropout(0.25, deterministic=not train)(x)
        return dict(x=x, factor=factor, shared=dict(scale=scale))


@dataclasses.dataclass(frozen=True)
class Toy(StatelessObjective):
    """Not linear in the batch with scope "batch", a weighted mean over examples with scope "example"."""

    scope: str
    head: nn.Module = dataclasses.field(default_factory=Head)

    @property
    def inputs(self):
        return dict(text=EncoderCall("text", "text"), tokens=BatchField("text"))

    def loss(self, features, fields, state, step):
        x = features["factor"] * features["shared"]["scale"] * jnp.tanh(features["x"])
        target = fields["tokens"]["ids"][:, :1] + step
        per_example = ((x - target) ** 2).sum(1)
        # As many as an example has tokens: microbatches differ in it, so that a mean of their means is wrong.
        weights = fields["tokens"]["mask"].sum(1)
        if self.scope == "batch":
            value = Sum(jnp.log(per_example.sum()))
        else:
            value = Sum((weights * per_example).sum(), weights.sum())
        metrics = dict(
            mean=Sum.of_mean(x.mean(), len(x)), weighted=Sum((weights * x[:, 0]).sum(), weights.sum())
        )
        return value, metrics, dict(center=state["center"] + x.mean())

    def initial_state(self):
        return dict(center=jnp.zeros(()))


def microbatched(system, count, shards):
    """System.loss from microbatches by plain autodiff, all of their activations kept: a function of (params,
    mutable, batch, key, step, teacher) -> (loss, the mean of the running statistics).

    Over n devices a microbatch has a part of each device's examples.
    """

    def order(size):
        return np.arange(size).reshape(shards, count, -1).swapaxes(0, 1).reshape(count, -1)

    def merge(*parts):
        return jnp.concatenate(parts)[np.argsort(order(sum(map(len, parts))).ravel())]

    def loss(params, mutable, batch, key, step, teacher=None):
        found, losses, states = [], [], []
        for i, part_key in enumerate(jax.random.split(key, count)):
            piece = jax.tree.map(lambda x, i=i: x[order(len(x))[i]], batch)
            features, statistics = system.features(params, mutable, piece, part_key, teacher)
            coupled = [name for name in features if system.terms[name].objective.scope == "batch"]
            found.append(train_step._partition({name: features.pop(name) for name in coupled}))
            states.append(statistics)
            losses.append(system.losses(features, piece, mutable["objectives"], step)[0])
        per_example = jax.tree.map(merge, *(part[0] for part in found))
        whole = train_step._merge(per_example, found[0][1])
        coupled_losses = system.losses(whole, batch, mutable["objectives"], step)[0]
        total = system.total(coupled_losses | jax.tree.map(lambda *x: sum(x), *losses), step)
        return total, jax.tree.map(lambda *s: sum(s) / count, *states)

    return loss
