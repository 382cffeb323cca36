"""Builds the modules of a ModelConfig, and the names and shapes of their weights."""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from big_ssl.models import encoders
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives import build as objectives
from big_ssl.objectives.base import Context, Objective
from big_ssl.objectives.classification import ClassifierHead
from big_ssl.objectives.contrastive import ContrastiveHead
from big_ssl.objectives.embedding import EmbeddingHead
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import ModelConfig

ENCODERS = ("image", "text")


class Modules(NamedTuple):
    """A model's modules.

    image, text: the encoders, None for one that the model lacks; head: the contrastive head, None for models
    of one encoder; embedding: the head of such a model, None without one; classifier: None unless the model
    is one; projections: {objective: self-distillation head}; tasks: {method: the objective that provides it}.
    """

    image: nn.Module | None
    text: nn.Module | None
    head: ContrastiveHead | None
    embedding: EmbeddingHead | None
    classifier: ClassifierHead | None
    projections: Mapping[str, ProjectionHead]
    tasks: Mapping[str, Objective]


def modules(config: ModelConfig, dtype: str = "float32") -> Modules:
    """Builds the modules of a ModelConfig. Raises WeightsError for missing or unknown keys."""
    try:
        tokenizer = config["tokenizer"] or dict(length=0, size=0)
        length, size = tokenizer["length"], tokenizer["size"]
        built: dict[str, nn.Module | None] = dict.fromkeys(ENCODERS)
        for name in encoder_names(config):
            built[name] = encoders.build(config["encoders"][name], dtype, size, length)
        return Modules(
            **built,
            head=None if config["head"] is None else ContrastiveHead(**config["head"]),
            embedding=EmbeddingHead(**config["embedding_head"]) if config.get("embedding_head") else None,
            classifier=ClassifierHead(config["classes"]) if config.get("classes") else None,
            projections={
                k: ProjectionHead(**options) for k, options in config.get("projections", {}).items()
            },
            tasks={k: _objective(options, built, dtype) for k, options in config.get("tasks", {}).items()},
        )
    except (KeyError, TypeError) as error:
        raise WeightsError(f"config.json does not describe a model: {error}") from error


def _objective(options, encoders_by_name, dtype):
    """The objective of a task, for evaluation: schedules and the mesh do not matter."""
    modules = {name: module for name, module in encoders_by_name.items() if module is not None}
    return objectives.build(options, Context(None, dtype, lambda value: value, {}, modules))


def encoder_names(config: ModelConfig) -> tuple[str, ...]:
    """The model's encoders: both with a contrastive head, else one. Raises WeightsError for others."""
    names = tuple(name for name in ENCODERS if name in config["encoders"])
    if len(names) != (1 if config["head"] is None else 2):
        raise WeightsError(
            f"config.json has the encoders {', '.join(names) or 'none'}; a model with a head has "
            f"{' and '.join(ENCODERS)}, another one of them"
        )
    return names


def with_defaults(config: ModelConfig) -> ModelConfig:
    """Fills in the modules' default options, except those that only affect how they are computed."""
    built = modules(config)
    complete = dict(
        encoders={
            name: _options(config["encoders"][name], getattr(built, name)) for name in encoder_names(config)
        }
    )
    for key, head in dict(head=built.head, embedding_head=built.embedding).items():
        if head is not None:
            complete[key] = _fields(head, ())
    return config | complete


def _options(configured, module):
    # An EfficientNet's stages are built from one of the options `strides` and `stages`.
    options = dict(kind=configured["kind"], **_fields(module, ("dtype", "remat", "attention", "stages")))
    return {key: configured[key] for key in configured if key in ("strides", "stages")} | options


def _fields(module, without):
    names = [
        field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name", *without)
    ]
    return {name: getattr(module, name) for name in names}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all weights: params/encoders/..., params/heads/..., and encoders/..., heads/... for
    running statistics."""
    built, key, ids = modules(config), jax.random.key(0), jnp.zeros((1, 1), int)
    outputs, variables = {}, {}
    if built.image is not None:
        # Convolutional networks have no image_size option: they take images of any size.
        size = config["encoders"]["image"].get("image_size", config["image_size"])
        images = jax.ShapeDtypeStruct((1, size, size, built.image.channels), jnp.float32)
        outputs["image"], variables["image"] = jax.eval_shape(built.image.init_with_output, key, images)
    if built.text is not None:
        outputs["text"], variables["text"] = jax.eval_shape(built.text.init_with_output, key, ids, ids == 0)
    pooled = outputs.get("image", {}).get("pooled")
    heads = {
        name: dict(params=dict(projection=jax.eval_shape(projection.init, key, pooled)["params"]))
        for name, projection in built.projections.items()
    }
    named = dict(contrastive=built.head, embedding=built.embedding, classification=built.classifier)
    for name, head in named.items():
        if head is not None:
            heads[name] = jax.eval_shape(head.init, key, outputs)
    for method, objective in built.tasks.items():
        inputs = {
            name: jax.eval_shape(functools.partial(_outputs, built.image, objective.inputs[name]), images)
            for name in objective.provides[method].inputs
        }
        heads[method] = jax.eval_shape(objective.head.init, key, inputs)
    return _flat_shapes(_variables(variables, heads))


def _outputs(module, call, images):
    """What a head gets of an encoder call, from random weights."""
    options = dict(intermediate=call.layers) if call.layers else {}
    outputs, _ = module.init_with_output(jax.random.key(0), images, **options)
    if call.layers:
        layers = [jax.tree.map(operator.itemgetter(i), outputs["layers"]) for i in range(len(call.layers))]
        outputs = outputs | dict(layers=tuple(layers))
    return {name: outputs[name] for name in call.outputs}


def _flat_shapes(variables):
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def _variables(encoder_variables: Mapping[str, Mapping], heads: Mapping[str, Mapping]) -> dict:
    """As training.state.evaluation_variables: {"params": {"encoders", "heads"}, and the running statistics of
    "encoders" and "heads"}."""
    parts = dict(encoders=encoder_variables, heads=heads)
    params = {part: {name: x.get("params", {}) for name, x in trees.items()} for part, trees in parts.items()}
    statistics = {
        part: {name: {k: v for k, v in x.items() if k != "params"} for name, x in trees.items()}
        for part, trees in parts.items()
    }
    return dict(params=params, **statistics)


def encoder_variables(variables: Mapping, name: str) -> dict:
    """Selects one encoder's variables, for its module's `apply`."""
    statistics = variables.get("encoders", {}).get(name, {})
    return dict(params=variables["params"]["encoders"][name], **statistics)
