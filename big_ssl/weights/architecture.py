"""Builds the modules of a ModelConfig, and the names and shapes of their weights."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from big_ssl.models import encoders
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.classification import ClassifierHead
from big_ssl.objectives.contrastive import ContrastiveHead
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import ModelConfig


class Modules(NamedTuple):
    """A model's modules.

    image: the image encoder; text: the text encoder, None for image-only models; head: the contrastive head,
    None for image-only models; classifier: None unless the model is one; projections:
    {objective: self-distillation head}.
    """

    image: nn.Module
    text: nn.Module | None
    head: ContrastiveHead | None
    classifier: ClassifierHead | None
    projections: Mapping[str, ProjectionHead]


def modules(config: ModelConfig, dtype: str = "float32") -> Modules:
    """Builds the modules of a ModelConfig. Raises WeightsError for missing or unknown keys."""
    try:
        tokenizer = config["tokenizer"] or dict(length=0, size=0)
        length, size = tokenizer["length"], tokenizer["size"]
        image = encoders.build(config["encoders"]["image"], dtype, size, length)
        classifier = ClassifierHead(config["classes"]) if config.get("classes") else None
        projections = {k: ProjectionHead(**options) for k, options in config.get("projections", {}).items()}
        if config["head"] is None:
            return Modules(image, None, None, classifier, projections)
        text = encoders.build(config["encoders"]["text"], dtype, size, length)
        head = ContrastiveHead(**config["head"])
        return Modules(image, text, head, classifier, projections)
    except (KeyError, TypeError) as error:
        raise WeightsError(f"config.json does not describe a model: {error}") from error


def with_defaults(config: ModelConfig) -> ModelConfig:
    """Fills in the modules' default options, except those that only affect how they are computed."""
    image, text, head, *_ = modules(config)
    encoder_options = dict(image=_options(config["encoders"]["image"], image))
    if head is None:
        return config | dict(encoders=encoder_options)
    encoder_options["text"] = _options(config["encoders"]["text"], text)
    return config | dict(encoders=encoder_options, head=_fields(head, ()))


def _options(configured, module):
    # An EfficientNet's stages are built from the option `strides`.
    options = dict(kind=configured["kind"], **_fields(module, ("dtype", "remat", "attention", "stages")))
    return {key: configured[key] for key in configured if key == "strides"} | options


def _fields(module, without):
    names = [
        field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name", *without)
    ]
    return {name: getattr(module, name) for name in names}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all weights: params/encoders/..., params/heads/..., encoders/... for statistics."""
    image, text, head, classifier, projections = modules(config)
    # Convolutional networks have no image_size option: they take images of any size.
    size = config["encoders"]["image"].get("image_size", config["image_size"])
    shape = (1, size, size, image.channels)
    key, images = jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
    image_outputs, image_variables = jax.eval_shape(image.init_with_output, key, images)
    variables, heads = dict(image=image_variables), {}
    if classifier is not None:
        heads["classification"] = jax.eval_shape(classifier.init, key, dict(image=image_outputs))["params"]
    for name, projection in projections.items():
        heads[name] = dict(projection=jax.eval_shape(projection.init, key, image_outputs["pooled"])["params"])
    if head is not None and text is not None:
        ids = jnp.zeros((1, 1), int)
        text_outputs, variables["text"] = jax.eval_shape(text.init_with_output, key, ids, ids == 0)
        inputs = dict(image=image_outputs, text=text_outputs)
        heads["contrastive"] = jax.eval_shape(head.init, key, inputs)["params"]
    return _flat_shapes(_variables(variables, heads))


def _flat_shapes(variables):
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def _variables(encoder_variables: Mapping[str, Mapping], heads: Mapping[str, Mapping]) -> dict:
    """As training.state.evaluation_variables: {"params": {"encoders", "heads"}, "encoders": statistics}."""
    statistics = {
        name: {k: v for k, v in variables.items() if k != "params"}
        for name, variables in encoder_variables.items()
    }
    encoder_params = {name: variables["params"] for name, variables in encoder_variables.items()}
    return dict(params=dict(encoders=encoder_params, heads=heads), encoders=statistics)


def encoder_variables(variables: Mapping, name: str) -> dict:
    """Selects one encoder's variables, for its module's `apply`."""
    statistics = variables.get("encoders", {}).get(name, {})
    return dict(params=variables["params"]["encoders"][name], **statistics)
