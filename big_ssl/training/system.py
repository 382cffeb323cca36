"""Encoders and weighted objectives, put together: the model and the loss of a run."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.data.device_views import ImageView
from big_ssl.objectives.base import Objective, Pass
from big_ssl.parallel import fsdp
from big_ssl.parallel.sharding import path_name
from big_ssl.training.random_keys import named_key


@dataclasses.dataclass(frozen=True)
class Term:
    """One objective on one stream, with its weight as a function of the step."""

    stream: str
    objective: Objective
    weight: Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class System:
    """All that is trained, as pure functions of (params, mutable, batch, key).

    encoders: {name: linen module}; views: {view: ImageView}, what happens on the device to a
    batch's images before an encoder sees them; terms: {name: Term}; specs: the PartitionSpec of
    each parameter on the mesh that all of it is traced within, None on one device; frozen: whether
    the parameter of a path is never trained.
    A batch is {stream: {view: uint8 images or dict(ids, mask)}}.
    """

    encoders: Mapping[str, nn.Module]
    views: Mapping[str, ImageView]
    terms: Mapping[str, Term]
    specs: Any = None
    frozen: Callable[[str], bool] = lambda name: False

    def init(self, key, batch):
        """(params, mutable) as in TrainState; of the batch only shapes and dtypes matter."""
        encoders, outputs = {}, {}
        for stream, item in self.passes():
            inputs = self._inputs(item.view, batch[stream], None)
            init = self.encoders[item.encoder].init_with_output
            outputs[stream, item], encoders[item.encoder] = init(named_key(key, item.encoder), **inputs)
        heads = {}
        for name, term in self.terms.items():
            read = {item: outputs[term.stream, item] for item in term.objective.needs}
            heads[name] = term.objective.head.init(named_key(key, name), read)["params"]
        params = {"encoders": {k: v["params"] for k, v in encoders.items()}, "heads": heads}
        states = {k: {c: v[c] for c in v if c != "params"} for k, v in encoders.items()}
        kept = {name: term.objective.initial_mutable() for name, term in self.terms.items()}
        return params, {"encoders": states, "objectives": kept}

    def loss(self, params, mutable, batch, key, step):
        """The weighted sum of all terms: (float32[], (metrics, new mutable)); see `combine`."""
        features, encoders = self.features(params, mutable["encoders"], batch, key)
        total, (metrics, kept) = self.combine(features, batch, mutable["objectives"], step)
        return total, (metrics, {"encoders": encoders, "objectives": kept})

    def features(self, params, encoder_state, batch, key):
        """What every term's head makes of the batch, in training mode.

        Returns ({term: features}, the encoders' new state).
        """
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.lax.stop_gradient(x) if self.frozen(path_name(path)) else x,
            self._gathered(params),
        )
        outputs, encoder_state = self.forward(params, encoder_state, batch, key)
        features = {
            name: self._features(name, params, {i: outputs[term.stream, i] for i in term.objective.needs})
            for name, term in self.terms.items()
        }
        return features, encoder_state

    def combine(self, features, batch, kept, step):
        """The weighted sum of the terms that `features` holds: (float32[], (metrics, kept)).

        kept: {term: what it keeps between steps}, before and after. metrics: each term
        unweighted under its name and weighted under "<name>_weighted", and what the terms
        report of themselves.
        """
        total, metrics, after = jnp.zeros(()), {}, {}
        for name in features:
            term = self.terms[name]
            value, own, after[name] = term.objective.loss(
                features[name], batch[term.stream], kept[name], step
            )
            weighted = term.weight(step) * value
            total += weighted
            metrics |= own | {name: value, f"{name}_weighted": weighted}
        return total, (metrics, after)

    def forward(self, params, encoder_state, batch, key):
        """Runs each distinct pass once, in training mode but for encoders that are frozen whole.

        Returns ({(stream, pass): encoder output}, the encoders' new state).
        """
        outputs = {}
        for stream, item in self.passes():
            view_key, dropout_key = (
                named_key(key, f"{stream}/{what}") for what in (item.view, f"{item.encoder}/{item.view}")
            )
            state, tower = encoder_state[item.encoder], params["encoders"][item.encoder]
            train = not self._all_frozen(item.encoder, tower)
            output, state = self.encoders[item.encoder].apply(
                {"params": tower, **state},
                **self._inputs(item.view, batch[stream], view_key),
                train=train,
                mutable=list(state),
                rngs={"dropout": dropout_key},
            )
            outputs[stream, item] = output
            encoder_state = encoder_state | {item.encoder: state}
        return outputs, encoder_state

    def encode(self, variables, name, views):
        """What the encoders make of the given views for term `name`, in evaluation mode.

        variables: {"params", "encoders"} as state.evaluation_variables gives; views: {view:
        batch}, any part of what the term needs. Returns {pass: encoder output}.
        """
        outputs, params = {}, self._gathered(variables["params"])
        for item in self.terms[name].objective.needs:
            if item.view in views:
                collections = {"params": params["encoders"][item.encoder]}
                collections |= variables["encoders"][item.encoder]
                inputs = self._inputs(item.view, views, None)
                outputs[item] = self.encoders[item.encoder].apply(collections, **inputs, train=False)
        return outputs

    def head(self, variables, name, outputs):
        """The dict of features that term `name`'s head makes of what `encode` returned."""
        return self._features(name, self._gathered(variables["params"]), outputs)

    def project(self, params):
        """Each objective's constraint on its head, applied after an update."""
        heads = {name: term.objective.project(params["heads"][name]) for name, term in self.terms.items()}
        return params | {"heads": heads}

    def passes(self) -> Iterator[tuple[str, Pass]]:
        """Every (stream, pass) that some term needs, once each, in the terms' order."""
        needed = ((term.stream, item) for term in self.terms.values() for item in term.objective.needs)
        return iter(dict.fromkeys(needed))

    def _gathered(self, params):
        return params if self.specs is None else fsdp.gather(params, self.specs)

    def _all_frozen(self, encoder, params):
        paths = (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
        return all(self.frozen(f"encoders/{encoder}/{path}") for path in paths)

    def _features(self, name, params, outputs):
        return self.terms[name].objective.head.apply({"params": params["heads"][name]}, outputs)

    def _inputs(self, view, batch, key):
        if view in self.views:
            return {"images": self.views[view](batch[view], key)}
        return batch[view]
