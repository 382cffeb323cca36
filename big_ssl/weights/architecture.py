"""The modules of a Config, and the names and shapes of all their weights."""

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
from big_ssl.weights.format import Config


class Modules(NamedTuple):
    """The image encoder; the text encoder and the head of a model that embeds texts; the head of a trained
    classifier; and {objective: head} of self-distillation."""

    image: nn.Module
    text: nn.Module | None
    head: ContrastiveHead | None
    classifier: ClassifierHead | None
    projections: Mapping[str, ProjectionHead]


def modules(config: Config, dtype: str = "float32") -> Modules:
    """The modules of a Config. Raises WeightsError where it has not the keys of one."""
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


def completed(config: Config) -> Config:
    """The Config with every option of its modules spelled out, but how they are computed."""
    image, text, head, *_ = modules(config)
    towers = dict(image=_options(config["encoders"]["image"], image))
    if head is None:
        return config | dict(encoders=towers)
    towers["text"] = _options(config["encoders"]["text"], text)
    return config | dict(encoders=towers, head=_fields(head, ()))


def _options(given, module):
    # An EfficientNet's stages are made of the strides that are given.
    options = dict(kind=given["kind"], **_fields(module, ("dtype", "remat", "attention", "stages")))
    return {key: given[key] for key in given if key == "strides"} | options


def _fields(module, without):
    names = [
        field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name", *without)
    ]
    return {name: getattr(module, name) for name in names}


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all weights: params/encoders/..., params/heads/..., encoders/... for statistics."""
    image, text, head, classifier, projections = modules(config)
    # A network of convolutions alone takes images of any size.
    size = config["encoders"]["image"].get("image_size", config["image_size"])
    key, images = jax.random.key(0), jnp.zeros((1, size, size, 3))
    seen, image_variables = jax.eval_shape(image.init_with_output, key, images)
    towers, heads = dict(image=image_variables), {}
    if classifier is not None:
        heads["classification"] = jax.eval_shape(classifier.init, key, dict(image=seen))["params"]
    for name, projection in projections.items():
        heads[name] = dict(projection=jax.eval_shape(projection.init, key, seen["pooled"])["params"])
    if head is not None and text is not None:
        ids = jnp.zeros((1, 1), int)
        read, towers["text"] = jax.eval_shape(text.init_with_output, key, ids, ids == 0)
        heads["contrastive"] = jax.eval_shape(head.init, key, dict(image=seen, text=read))["params"]
    return _flat(joined(towers, heads))


def _flat(variables):
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def joined(towers: Mapping[str, Mapping], heads: Mapping[str, Mapping]) -> dict:
    """As training.state.evaluation_variables: {"params": {"encoders", "heads"}, "encoders": statistics}."""
    statistics = {name: {k: v for k, v in tower.items() if k != "params"} for name, tower in towers.items()}
    params = dict(encoders={name: tower["params"] for name, tower in towers.items()}, heads=heads)
    return dict(params=params, encoders=statistics)


def tower_variables(variables: Mapping, name: str) -> dict:
    """The variables of one encoder, as its module takes them."""
    statistics = variables.get("encoders", {}).get(name, {})
    return dict(params=variables["params"]["encoders"][name], **statistics)
