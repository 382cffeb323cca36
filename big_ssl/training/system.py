"""Encoders and weighted objectives, put together: the model and the loss of a run."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.data.device_views import ImageView
from big_ssl.data.masking import BlockMask
from big_ssl.models import encoders
from big_ssl.models.vit import ViT
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
    batch's images before an encoder sees them; masks: {view: BlockMask}, drawn anew each step;
    terms: {name: Term}; specs: the PartitionSpec of each parameter on the mesh that all of it is traced
    within, None on one device; frozen: whether the parameter of a path is never trained.
    A batch is {stream: {view: uint8 images [B, H, W, 3] or crops [B, n, H, W, 3], or dict(ids, mask)}}.
    """

    encoders: Mapping[str, nn.Module]
    views: Mapping[str, ImageView]
    terms: Mapping[str, Term]
    masks: Mapping[str, BlockMask] = dataclasses.field(default_factory=dict)
    specs: Any = None
    frozen: Callable[[str], bool] = lambda name: False

    def init(self, key, batch):
        """(params, mutable) as in TrainState; of the batch only shapes and dtypes matter."""
        initial, outputs, inputs = {}, {}, self._inputs(batch, key, train=False)
        for stream, item in self.passes():
            module, given = self.encoders[item.encoder], inputs[stream, item.view]
            init = functools.partial(module.init_with_output, named_key(key, item.encoder))
            outputs[stream, item], variables = _run(init, given, item)
            initial.setdefault(item.encoder, variables)
        heads = {}
        for name, term in self.terms.items():
            if not term.objective.head_of:
                read = {i: outputs[term.stream, i] for i in term.objective.needs if not i.teacher}
                heads[name] = term.objective.head.init(named_key(key, name), read).get("params", {})
        params = {"encoders": {k: v["params"] for k, v in initial.items()}, "heads": heads}
        states = {k: {c: v[c] for c in v if c != "params"} for k, v in initial.items()}
        kept = {name: term.objective.initial_mutable() for name, term in self.terms.items()}
        return params, {"encoders": states, "objectives": kept}

    def loss(self, params, mutable, batch, key, step, teacher=None):
        """The weighted sum of all terms: (float32[], (metrics, new mutable)); see `combine`."""
        features, statistics = self.features(params, mutable["encoders"], batch, key, teacher)
        total, (metrics, kept) = self.combine(features, batch, mutable["objectives"], step)
        return total, (metrics, {"encoders": statistics, "objectives": kept})

    def features(self, params, encoder_state, batch, key, teacher=None):
        """What every term's head makes of the batch, in training mode.

        teacher: state.averaged of the averaged weights, for the passes that are the teacher's.
        Returns ({term: features}, the encoders' new state).
        """
        still = {name for name, tower in params["encoders"].items() if self._all_frozen(name, tower)}
        params = jax.tree_util.tree_map_with_path(
            lambda path, x: jax.lax.stop_gradient(x) if self.frozen(path_name(path)) else x, params
        )
        params, inputs = self._gathered(params), self._inputs(batch, key, train=True)
        outputs, encoder_state = self._student_outputs(params, encoder_state, inputs, key, still)
        features = {name: self._features(name, params, outputs, teacher=False) for name in self.terms}
        for name, found in self._taught(teacher, inputs).items():
            features[name]["teacher"] = found
        return features, encoder_state

    def taught(self, teacher, batch, key):
        """{term: what its head makes of the teacher's passes}, of terms that have such; no gradient."""
        return self._taught(teacher, self._inputs(batch, key, train=True))

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

    def encode(self, variables, name, views):
        """What the encoders make of the given views for term `name`, in evaluation mode.

        variables: {"params", "encoders"} as state.evaluation_variables gives; views: {view:
        batch}, any part of what the term needs; without a name the image encoder is asked about the
        view "image". Returns {pass: encoder output}.
        """
        outputs, params = {}, self._gathered(variables["params"])
        for item in self.terms[name].objective.needs if name else (Pass("image", "image"),):
            if item.view in views:
                collections = {"params": params["encoders"][item.encoder]}
                collections |= variables["encoders"][item.encoder]
                given = self._input(item.view, views[item.view], None)
                apply = functools.partial(self.encoders[item.encoder].apply, collections, train=False)
                outputs[item] = _run(apply, given, item)
        return outputs

    def head(self, variables, name, outputs):
        """The dict of features that term `name`'s head makes of what `encode` returned."""
        return self._apply_head(name, self._gathered(variables["params"]), outputs)

    def image_tower(self, variables, images):
        """(the image encoder, its variables, its input: float32[B, H, W, 3]), for who looks inside it.

        variables: as in `encode`; images: uint8[B, H, W, 3].
        """
        params = self._gathered(variables["params"])["encoders"]["image"]
        collections = {"params": params} | variables["encoders"]["image"]
        return self.encoders["image"], collections, self._input("image", images, None)["images"]

    def project(self, params):
        """Each objective's constraint on its head, applied after an update."""
        heads = {name: self.terms[name].objective.project(head) for name, head in params["heads"].items()}
        return params | {"heads": heads}

    def passes(self) -> Iterator[tuple[str, Pass]]:
        """Every (stream, pass) that some term needs, once each, in the terms' order."""
        needed = ((term.stream, item) for term in self.terms.values() for item in term.objective.needs)
        return iter(dict.fromkeys(needed))

    @property
    def embedding_term(self) -> str:
        """The term whose head embeds whole images; "" where there is none, and pooled outputs have to do."""
        found = (n for n, t in self.terms.items() if any(i.view == "image" for i in t.objective.needs))
        return next(found, "")

    @property
    def has_teacher(self) -> bool:
        """Whether some pass is the teacher's."""
        return any(item.teacher for _, item in self.passes())

    def _student_outputs(self, params, encoder_state, inputs, key, still):
        """Each distinct pass once, in training mode but for the encoders in `still`, frozen whole.

        Returns ({(stream, pass): encoder output}, the encoders' new state).
        """
        outputs = {}
        for stream, items in self._student_passes():
            encoder = items[0].encoder
            state, tower = encoder_state[encoder], params["encoders"][encoder]
            views = "+".join(item.view for item in items)
            apply = functools.partial(
                self.encoders[encoder].apply,
                {"params": tower, **state},
                train=encoder not in still,
                mutable=list(state),
                rngs={"dropout": named_key(key, f"{stream}/{encoder}/{views}")},
            )
            found, state = _run_together(apply, [inputs[stream, item.view] for item in items], items)
            outputs |= {(stream, item): output for item, output in zip(items, found, strict=True)}
            encoder_state = encoder_state | {encoder: state}
        return outputs, encoder_state

    def _student_passes(self) -> list[tuple[str, list[Pass]]]:
        """(stream, passes that are run together): all of an encoder's that can take several sizes."""
        groups: dict = {}
        for stream, item in self.passes():
            # Where an encoder takes one size at a time, each pass is a group of its own.
            apart = None if isinstance(self.encoders[item.encoder], ViT) else item
            if not item.teacher:
                groups.setdefault((stream, item.encoder, apart), []).append(item)
        return [(stream, items) for (stream, *_), items in groups.items()]

    def _taught(self, teacher, inputs):
        if not self.has_teacher:
            return {}
        teacher = jax.lax.stop_gradient(teacher | dict(params=self._gathered(teacher["params"])))
        outputs = {}
        for stream, item in self.passes():
            if item.teacher:
                tower = {"params": teacher["params"]["encoders"][item.encoder]}
                tower |= teacher["encoders"][item.encoder]
                apply = functools.partial(self.encoders[item.encoder].apply, tower, train=False)
                outputs[stream, item] = _run(apply, inputs[stream, item.view], item)
        taught = (n for n, t in self.terms.items() if any(item.teacher for item in t.objective.needs))
        found = {name: self._features(name, teacher["params"], outputs, teacher=True) for name in taught}
        return jax.lax.stop_gradient(found)

    def _features(self, name, params, outputs, teacher):
        """What a term's head makes of its student's, or its teacher's passes."""
        stream, needs = self.terms[name].stream, self.terms[name].objective.needs
        return self._apply_head(name, params, {i: outputs[stream, i] for i in needs if i.teacher == teacher})

    def _apply_head(self, name, params, outputs):
        objective = self.terms[name].objective
        return objective.head.apply({"params": params["heads"][objective.head_of or name]}, outputs)

    def _inputs(self, batch, key, train):
        """{(stream, view): an encoder's arguments, and the mask and the share where the view has them}."""
        inputs = {}
        for stream, view in dict.fromkeys((stream, item.view) for stream, item in self.passes()):
            own = named_key(key, f"{stream}/{view}")
            inputs[stream, view] = self._input(view, batch[stream][view], own if train else None)
            if view in self.masks:
                crops = batch[stream][view].shape[:2]
                inputs[stream, view]["mask"] = self.masks[view](named_key(own, "mask"), *crops)
        return inputs

    def _input(self, view, given, key):
        if view not in self.views:
            return dict(given)
        prepared, found = self.views[view], {}
        images = prepared(given, key)
        if key is not None and prepared.mixes:
            images, found["share"] = prepared.mix(images, named_key(key, "mix"))
        if prepared.shrink > 1:
            found["large"], images = images, prepared.shrunk(images)
        return found | dict(images=images)

    def _gathered(self, params):
        if self.specs is None:
            return params
        dtypes = jax.tree.map(lambda x: x.dtype, params) | dict(
            encoders={
                name: encoders.compute_dtypes(tower, self.encoders[name].dtype)
                for name, tower in params["encoders"].items()
            }
        )
        return fsdp.gather(params, self.specs, dtypes)

    def _all_frozen(self, encoder, params):
        paths = (path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
        return all(self.frozen(f"encoders/{encoder}/{path}") for path in paths)


def _run(apply, given, item):
    """apply(**given), whose crops [B, n, ...] are examples to the encoder; outputs [B, n, ...] again.

    What comes with the output, variables or state, is passed on.
    """
    if "images" not in given:
        return apply(**given)
    found = apply(**_flat(given, item))
    output, rest = found if isinstance(found, tuple) else (found, None)
    output = _shaped(output, given)
    return (output, rest) if isinstance(found, tuple) else output


def _run_together(apply, given, items):
    """(the outputs of one run of an encoder over all of these, its state)."""
    if len(items) == 1:
        output, state = _run(apply, given[0], items[0])
        return [output], state
    flat = [_flat(*each) for each in zip(given, items, strict=True)]
    images, masks = (tuple(x.get(key) for x in flat) for key in ("images", "mask"))
    outputs, state = apply(images=images, mask=masks)
    return [_shaped(*each) for each in zip(outputs, given, strict=True)], state


def _flat(given, item):
    images = given["large" if item.large else "images"]
    arguments = dict(images=images.reshape(-1, *images.shape[-3:]))
    if item.masked:
        mask = given["mask"]["mask"]
        arguments["mask"] = mask.reshape(-1, mask.shape[-1])
    return arguments


def _shaped(output, given):
    crops = given["images"].shape[:-3]
    output = jax.tree.map(lambda x: x.reshape(*crops, *x.shape[1:]), output)
    return output | {key: given[key] for key in ("mask", "share") if key in given}
