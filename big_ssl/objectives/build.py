"""Objectives by name, as configs choose them."""

from collections.abc import Mapping

from big_ssl.objectives.base import Objective
from big_ssl.objectives.contrastive import Contrastive, ContrastiveHead


def contrastive(
    weight,
    dim: int,
    image_projection: bool = False,
    text_bias: bool = True,
    temperature: float = 1.0,
    temperature_form: str = "raw",
    label_smoothing: float = 0.0,
) -> Contrastive:
    """The contrastive objective; `weight` is the step's business."""
    del weight
    head = ContrastiveHead(dim, image_projection, text_bias, temperature, temperature_form)
    return Contrastive(head, label_smoothing)


OBJECTIVES = {"contrastive": contrastive}


def build(name: str, options: Mapping) -> Objective:
    """The objective `name` from its config."""
    return OBJECTIVES[name](**options)
