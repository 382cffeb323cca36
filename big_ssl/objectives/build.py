"""Objectives by name, as configs choose them."""

from collections.abc import Mapping

from big_ssl.losses.pairwise import FORMS, Pairwise
from big_ssl.objectives.base import Objective
from big_ssl.objectives.contrastive import Contrastive, ContrastiveHead


def contrastive(
    weight,
    dim: int,
    image_projection: bool = False,
    text_bias: bool = True,
    temperature: float = 1.0,
    temperature_form: str = "raw",
    logit_bias: float | None = None,
    label_smoothing: float = 0.0,
    form: str = "ring",
    *,
    mesh,
) -> Contrastive:
    """The contrastive objective; `weight` is the step's business, form: see losses.pairwise.

    Raises ValueError for an unknown form, or label smoothing where there is no softmax.
    """
    del weight
    if form not in FORMS:
        raise ValueError(f"contrastive.form is {form!r}; there are {', '.join(FORMS)}")
    if label_smoothing and logit_bias is not None:
        raise ValueError("contrastive: label_smoothing is the softmax's; with a logit_bias it must be 0")
    head = ContrastiveHead(dim, image_projection, text_bias, temperature, temperature_form, logit_bias)
    return Contrastive(head, Pairwise(form, mesh), label_smoothing)


OBJECTIVES = {"contrastive": contrastive}


def build(name: str, options: Mapping, mesh) -> Objective:
    """The objective `name` from its config; mesh: that batches are split over."""
    return OBJECTIVES[name](**options, mesh=mesh)
