"""The model and the loss of a run: encoders and weighted objectives."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from big_ssl.data.fields import Field, Image
from big_ssl.data.preprocessing import Pixels
from big_ssl.models import encoders
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.base import BatchField, EncoderCall, Loss, Objective, Sum, mean_loss
from big_ssl.parallel import fsdp
from big_ssl.parallel.sharding import path_name
from big_ssl.random_keys import named_key
from big_ssl.training.encoder_runs import VIEW_OUTPUTS, run, run_together


@dataclasses.dataclass(frozen=True)
class Term:
    """One objective on one stream, with its weight as a function of the step."""

    stream: str
    objective: Objective
    weight: Callable[[jax.Array], Any]

    @property
    def calls(self) -> dict[str, EncoderCall]:
        """The encoder calls among the objective's inputs."""
        return {k: v for k, v in self.objective.inputs.items() if isinstance(v, EncoderCall)}

    @property
    def field_names(self) -> tuple[str, ...]:
        """The fields of the stream's batch that the objective reads, through encoders or itself."""
        inputs = self.objective.inputs.values()
        return tuple(x.view if isinstance(x, EncoderCall) else x.name for x in inputs)

    def fields(self, batch: Mapping[str, Mapping]) -> dict[str, Any]:
        """{input's name: value} of the batch fields among the objective's inputs. batch: {stream: batch}."""
        inputs = self.objective.inputs.items()
        return {k: batch[self.stream][v.name] for k, v in inputs if isinstance(v, BatchField)}


@dataclasses.dataclass(frozen=True)
class System:
    """Encoders and objectives as pure functions of (params, mutable, batch, key).

    encoders: {name: linen module}. fields: {stream: {field: Field}}, which transform a batch on the device.
    terms: {objective's name: Term}. eval_pixels: the normalisation of images in evaluation. specs: the
    PartitionSpec of each parameter on the mesh within which these functions are traced, None on one device.
    frozen: whether the parameter at a path is never trained. predictors: {method: the objective that
    provides it}, if several do.
    A batch is {stream: {field: its values}}, with the shapes of Field.zeros and a leading [B].
    """

    encoders: Mapping[str, Encoder]
    fields: Mapping[str, Mapping[str, Field]]
    terms: Mapping[str, Term]
    eval_pixels: Pixels = dataclasses.field(default_factory=Pixels)
    specs: Any = None
    frozen: Callable[[str], bool] = lambda name: False
    predictors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def init(self, key, batch):
        """Returns (params, mutable) as in TrainState. batch: only its shapes and dtypes matter."""
        initial, outputs, inputs = {}, {}, self._view_inputs(batch, key, train=False)
        for stream, call in self.encoder_calls():
            module, arguments = self.encoders[call.encoder], inputs[stream, call.view]
            init = functools.partial(module.init_with_output, named_key(key, call.encoder))
            outputs[stream, call.run], variables = run(init, arguments, call)
            initial.setdefault(call.encoder, variables)
        heads = {}
        for name, term in self.terms.items():
            if not term.objective.shares_head_with:
                head_inputs = self._head_inputs(term, outputs, batch, teacher=False)
                heads[name] = term.objective.head.init(named_key(key, name), head_inputs)
        parts = dict(encoders=initial, heads=heads)
        params = {part: {k: v.get("params", {}) for k, v in parts[part].items()} for part in parts}
        statistics = {part: {k: _without_params(v) for k, v in parts[part].items()} for part in parts}
        if not any(statistics["heads"].values()):
            del statistics["heads"]
        states = {name: term.objective.initial_state() for name, term in self.terms.items()}
        return params, statistics | {"objectives": states}

    def loss(self, params, mutable, batch, key, step, teacher=None):
        """The weighted sum of all objectives.

        Args:
          params, mutable: as in TrainState.
          batch, key, teacher: see `features`.
          step: int32[].

        Returns:
          (float32[], (metrics, new mutable)); metrics: {"<objective>/<metric>": float32[]}, see `metrics`.
        """
        batch = self.flipped(batch, key)
        features, statistics = self.features(params, mutable, batch, key, teacher)
        losses, metrics, states = self.losses(features, batch, mutable["objectives"], step)
        total = self.total(losses, step)
        return total, (self.metrics(losses, metrics, step), statistics | {"objectives": states})

    def flipped(self, batch, key):
        """The batch with boxes, masks and depths mirrored wherever `features` will mirror their images.

        key: the same as that of `features`.
        """
        batch = {stream: dict(values) for stream, values in batch.items()}
        for stream, name in self.mirrored:
            field, images = self.fields[stream][name], self.fields[stream][name].image_field()
            shape, image_key = batch[stream][images].shape[:-3], named_key(key, f"{stream}/{images}")
            flips = self.fields[stream][images].flips(image_key, shape)
            batch[stream][name] = field.mirror(batch[stream][name], flips)
        return batch

    def features(self, params, statistics, batch, key, teacher=None):
        """The features of every objective's head, in training mode.

        Args:
          params: as in TrainState.
          statistics: the running statistics in TrainState's mutable, "encoders" and "heads", if it has them.
          batch, key: see `flipped`; the random key of this step.
          teacher: state.averaged of the EMA weights, for the teacher's calls.

        Returns:
          ({objective: features}, the new statistics).
        """
        not_training = {name for name, tree in params["encoders"].items() if self._all_frozen(name, tree)}
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.lax.stop_gradient(x) if self.frozen(path_name(path)) else x, params
        )
        params, inputs = self._gathered(params), self._view_inputs(batch, key, train=True)
        encoder_state, heads = statistics["encoders"], dict(statistics.get("heads", {}))
        outputs, encoder_state = self._student_outputs(params, encoder_state, inputs, key, not_training)
        features = {}
        for name, term in self.terms.items():
            head_inputs = self._head_inputs(term, outputs, batch, teacher=False)
            variables, head_key = dict(params=params, heads=heads), named_key(key, f"heads/{name}")
            features[name], state = self._apply_head(name, variables, head_inputs, head_key)
            heads |= {term.objective.shares_head_with or name: state} if state else {}
        for name, teacher_features in self._teacher_features(teacher, inputs, batch).items():
            features[name]["teacher"] = teacher_features
        return features, dict(encoders=encoder_state) | (dict(heads=heads) if heads else {})

    def teacher_features(self, teacher, batch, key):
        """{objective: its head's features of the teacher's calls}, if it has such calls; no gradient.

        Args:
          teacher, batch, key: see `features`.
        """
        return self._teacher_features(teacher, self._view_inputs(batch, key, train=True), batch)

    def losses(self, features, batch, states, step):
        """The unweighted loss of each objective in `features`.

        Args:
          features: {objective: its head's features}.
          batch: {stream: {field: its values}}.
          states: {objective: its state}.
          step: int32[].

        Returns:
          ({objective: its loss}, {"<objective>/<metric>": Sum}, the new states).
        """
        losses, metrics, after = {}, {}, {}
        for name in features:
            term = self.terms[name]
            losses[name], values, after[name] = term.objective.loss(
                features[name], term.fields(batch), states[name], step
            )
            metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        return losses, metrics, after

    def total(self, losses: Mapping[str, Loss], step):
        """The weighted sum of these losses: float32[]."""
        return sum(
            (self.terms[name].weight(step) * mean_loss(loss) for name, loss in losses.items()), jnp.zeros(())
        )

    def metrics(self, losses: Mapping[str, Loss], metrics: Mapping[str, Sum], step):
        """Means of the metrics and losses.

        Args:
          losses, metrics, step: see `losses`.

        Returns:
          {name: float32[]}: each objective's metrics, its "loss", and its "weighted_loss".
        """
        values = {name: x.mean for name, x in metrics.items()}
        for name, loss in losses.items():
            mean = mean_loss(loss)
            weighted = self.terms[name].weight(step) * mean
            values |= {f"{name}/loss": mean, f"{name}/weighted_loss": weighted}
        return values

    def encode(self, variables, call, inputs):
        """The encoder outputs of one call in evaluation mode.

        Args:
          variables: {"params", "encoders", "heads"} as state.evaluation_variables returns.
          call: an EncoderCall.
          inputs: the batch field that call.view names.
        """
        params = self._gathered(variables["params"])["encoders"][call.encoder]
        collections = {"params": params} | variables["encoders"][call.encoder]
        apply = functools.partial(self.encoders[call.encoder].apply, collections, train=False)
        positive = call._replace(layers=self._layers([call]))
        return self._selected_layers(call, run(apply, self._eval_input(inputs), positive))

    def head(self, variables, name, inputs):
        """The features of one objective's head in evaluation mode.

        Args:
          variables: as in `encode`.
          name: the objective.
          inputs: {input of the head: what `encode` returned}.
        """
        gathered = dict(variables) | dict(params=self._gathered(variables["params"]))
        return self._apply_head(name, gathered, inputs)[0]

    def bound_encoder(self, variables, call, images):
        """The arguments of a function that probes an encoder's layers.

        Args:
          variables, call: as in `encode`.
          images: uint8[B, H, W, 3].

        Returns:
          (the call's encoder, its variables, its input: float32[B, H, W, 3]).
        """
        params = self._gathered(variables["params"])["encoders"][call.encoder]
        collections = {"params": params} | variables["encoders"][call.encoder]
        return self.encoders[call.encoder], collections, self.eval_pixels(images)

    def project(self, params):
        """Each objective's constraint on its head, applied after an update."""
        heads = {name: self.terms[name].objective.project(head) for name, head in params["heads"].items()}
        return params | {"heads": heads}

    def encoder_calls(self) -> Iterator[tuple[str, EncoderCall]]:
        """Every distinct run, as (stream, EncoderCall.run with the layers of all calls that share it), in the
        objectives' order."""
        runs: dict = {}
        for term in self.terms.values():
            for call in term.calls.values():
                runs.setdefault((term.stream, call.run), []).append(call)
        return ((stream, run._replace(layers=self._layers(calls))) for (stream, run), calls in runs.items())

    def _layers(self, calls):
        """The layers of these calls of one encoder, as indices from the first layer."""
        depth = self.encoders[calls[0].encoder].num_layers
        return tuple(sorted({layer % depth for call in calls for layer in call.layers}))

    def _selected_layers(self, call, outputs):
        """The outputs with those of the call's layers, in its order, from a run that may have more."""
        if not call.layers:
            return outputs
        depth = self.encoders[call.encoder].num_layers
        return outputs | dict(layers=tuple(outputs["layers"][layer % depth] for layer in call.layers))

    def provider(self, method: str) -> str:
        """The objective whose head provides this method of a predictor; "" for none.

        Raises ValueError if several do and `predictors` names none of them.
        """
        names = [name for name, term in self.terms.items() if method in term.objective.provides]
        if len(names) > 1 and self.predictors.get(method) not in names:
            raise ValueError(
                f"predictors.{method} must be one of {', '.join(names)}: each of these objectives provides it"
            )
        return self.predictors[method] if len(names) > 1 else "".join(names)

    @property
    def mirrored(self) -> list[tuple[str, str]]:
        """(stream, field) for every field that belongs to a randomly mirrored image."""
        return [
            (stream, name)
            for stream, fields in self.fields.items()
            for name, field in fields.items()
            if isinstance(image := fields.get(field.image_field()), Image) and image.flip
        ]

    @property
    def has_teacher(self) -> bool:
        """Whether any call is the EMA teacher's."""
        return any(call.teacher for _, call in self.encoder_calls())

    def _student_outputs(self, params, encoder_state, inputs, key, not_training):
        """Each distinct run once, in training mode except for entirely frozen encoders.

        Returns ({(stream, run): encoder outputs}, the encoders' new state).
        """
        outputs = {}
        for stream, calls in self._student_runs():
            encoder = calls[0].encoder
            state = encoder_state[encoder]
            views = "+".join(call.view for call in calls)
            apply = functools.partial(
                self.encoders[encoder].apply,
                {"params": params["encoders"][encoder], **state},
                train=encoder not in not_training,
                mutable=list(state),
                rngs={"dropout": named_key(key, f"{stream}/{encoder}/{views}")},
            )
            results, state = run_together(apply, [inputs[stream, call.view] for call in calls], calls)
            outputs |= {(stream, call.run): output for call, output in zip(calls, results, strict=True)}
            encoder_state = encoder_state | {encoder: state}
        return outputs, encoder_state

    def _student_runs(self) -> list[tuple[str, list[EncoderCall]]]:
        """(stream, calls that run together): all calls of an encoder that takes several sizes at once."""
        groups: dict = {}
        for stream, call in self.encoder_calls():
            alone = None if self.encoders[call.encoder].takes_several_sizes else call.run
            if not call.teacher:
                groups.setdefault((stream, call.encoder, alone), []).append(call)
        return [(stream, calls) for (stream, *_), calls in groups.items()]

    def _teacher_features(self, teacher, inputs, batch):
        if not self.has_teacher:
            return {}
        teacher = jax.lax.stop_gradient(teacher | dict(params=self._gathered(teacher["params"])))
        outputs = {}
        for stream, call in self.encoder_calls():
            if call.teacher:
                variables = {"params": teacher["params"]["encoders"][call.encoder]}
                variables |= teacher["encoders"][call.encoder]
                apply = functools.partial(self.encoders[call.encoder].apply, variables, train=False)
                outputs[stream, call.run] = run(apply, inputs[stream, call.view], call)
        features = {}
        for name, term in self.terms.items():
            if any(call.teacher for call in term.calls.values()):
                head_inputs = self._head_inputs(term, outputs, batch, teacher=True)
                features[name] = self._apply_head(name, teacher, head_inputs)[0]
        return jax.lax.stop_gradient(features)

    def _head_inputs(self, term, outputs, batch, teacher):
        """The inputs of a head: outputs of the student's or the EMA teacher's calls, and batch fields."""
        inputs = {}
        for name, call in term.calls.items():
            if call.teacher == teacher:
                available = self._selected_layers(call, outputs[term.stream, call.run])
                inputs[name] = {key: available[key] for key in call.outputs}
                inputs[name] |= {key: available[key] for key in VIEW_OUTPUTS if key in available}
        return inputs | term.fields(batch)

    def _apply_head(self, name, variables, inputs, key=None):
        """(features, the head's new statistics); key: of dropout, in training; None in evaluation."""
        head, owner = self.terms[name].objective.head, self.terms[name].objective.shares_head_with or name
        state = variables.get("heads", {}).get(owner, {})
        collections = {"params": variables["params"]["heads"][owner], **state}
        rngs = None if key is None else {"dropout": key}
        return head.apply(collections, inputs, train=key is not None, mutable=list(state), rngs=rngs)

    def _view_inputs(self, batch, key, train):
        """{(stream, view): an encoder's arguments, and the mask and mix_ratio if the view has them}."""
        inputs = {}
        for stream, view in dict.fromkeys((stream, call.view) for stream, call in self.encoder_calls()):
            view_key = named_key(key, f"{stream}/{view}")
            inputs[stream, view] = self.fields[stream][view].encoder_inputs(
                batch[stream][view], view_key, train
            )
        return inputs

    def _eval_input(self, value):
        """An encoder's arguments from resized images, uint8[B, H, W, 3], or from dict(ids, mask)."""
        return dict(value) if isinstance(value, Mapping) else dict(images=self.eval_pixels(value))

    def _gathered(self, params):
        if self.specs is None:
            return params
        dtypes = jax.tree.map(lambda x: x.dtype, params) | dict(
            encoders={
                name: encoders.compute_dtypes(tree, self.encoders[name].dtype)
                for name, tree in params["encoders"].items()
            }
        )
        return fsdp.gather(params, self.specs, dtypes)

    def _all_frozen(self, encoder, params):
        paths = (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
        return all(self.frozen(f"encoders/{encoder}/{path}") for path in paths)


def _without_params(variables):
    return {collection: tree for collection, tree in variables.items() if collection != "params"}
