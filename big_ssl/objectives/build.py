"""Objectives by name, as configs choose them."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp

from big_ssl.losses.pairwise import FORMS, Pairwise
from big_ssl.models.projection_head import ProjectionHead
from big_ssl.objectives.base import Objective
from big_ssl.objectives.centring import CENTRINGS, MovingCentre, Sinkhorn
from big_ssl.objectives.classification import LOSSES, Classification, ClassifierHead
from big_ssl.objectives.contrastive import Contrastive, ContrastiveHead
from big_ssl.objectives.dino import ClassTokenHead, Dino
from big_ssl.objectives.gram import Gram
from big_ssl.objectives.ibot import Ibot, PatchHead
from big_ssl.objectives.koleo import KoLeo


class Context(NamedTuple):
    """What a run gives its objectives. mesh: that batches are split over; dtype: of large products;
    schedule: from a config's value, a number or a mapping, to a function of the step; heads: the
    `head` options of the other objectives on the stream, by name."""

    mesh: Any
    dtype: str
    schedule: Callable
    heads: Mapping[str, Any]


def classification(
    weight,
    classes: int,
    label: str,
    view: str = "image",
    loss: str = "softmax",
    label_smoothing: float = 0.0,
    *,
    context: Context,
) -> Classification:
    """Supervised classification of the pictures of `view` into so many classes; loss: softmax or sigmoid.

    label: which of the source's labels comes as the batch's "label". Raises ValueError for an unknown loss.
    """
    del weight, label, context
    if loss not in LOSSES:
        raise ValueError(f"classification.loss is {loss!r}; use {', '.join(LOSSES)}")
    return Classification(ClassifierHead(classes), view, loss, label_smoothing)


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
    context: Context,
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
    return Contrastive(head, Pairwise(form, context.mesh), label_smoothing)


def dino(
    weight,
    head: Mapping,
    teacher_temperature: Any = 0.04,
    student_temperature: float = 0.1,
    centring: Mapping = MappingProxyType(dict(kind="centre")),
    chunk: int = 0,
    teacher: str = "",
    masked: bool = True,
    local: bool = True,
    *,
    context: Context,
) -> Dino:
    """Self-distillation on class tokens; head: options of models.projection_head.ProjectionHead.

    teacher_temperature: a number or a schedule; centring: kind centre or sinkhorn, and its options (see
    objectives.centring); chunk, teacher: see objectives.self_distillation. Raises ValueError for what is no
    option.
    """
    del weight
    projection = ClassTokenHead(
        _projection("dino", head, context), _of_teacher("dino", head, teacher, context)
    )
    schedule, found = context.schedule(teacher_temperature), _centring("dino", centring)
    return Dino(projection, schedule, found, student_temperature, chunk, teacher, masked=masked, local=local)


def ibot(
    weight,
    head: Any,
    teacher_temperature: Any = 0.04,
    student_temperature: float = 0.1,
    centring: Mapping = MappingProxyType(dict(kind="centre")),
    centre_over: str = "all",
    chunk: int = 0,
    teacher: str = "",
    masked: bool = True,
    *,
    context: Context,
) -> Ibot:
    """Self-distillation on masked patches. head: as in `dino`, or "dino" to share that objective's.

    centre_over: "all" patches (iBOT), or the "masked" ones (DINOv2). masked: see objectives.ibot. Others
    as in `dino`.
    """
    del weight
    if centre_over not in ("all", "masked"):
        raise ValueError(f"ibot.centre_over is {centre_over!r}; use all or masked")
    owner = head if isinstance(head, str) else ""
    if owner and owner not in context.heads:
        raise ValueError(f"ibot.head is {owner!r}, which is no objective of this stream with a head")
    options = context.heads[owner] if owner else head
    projections = _projection("ibot", options, context), _of_teacher("ibot", options, teacher, context)
    schedule, found = context.schedule(teacher_temperature), _centring("ibot", centring)
    all_patches = masked and centre_over == "all" and isinstance(found, MovingCentre)
    patches = PatchHead(projections[0], all_patches, projections[1], masked)
    return Ibot(patches, schedule, found, student_temperature, chunk, teacher, owner, masked)


def koleo(weight, group_size: int, crops: int = 2, masked: bool = True, *, context: Context) -> KoLeo:
    """KoLeo on class tokens. group_size: examples among which a nearest one is looked for, 0 for all of the
    batch; published runs have each device's, crops: 2 in the published code, 1 in the paper."""
    del weight, context
    return KoLeo(group_size, crops, masked)


def gram(weight, teacher: str = "", masked: bool = True, large: bool = False, *, context: Context) -> Gram:
    """Gram anchoring of the large crops' patches; see objectives.gram."""
    del weight, context
    return Gram(teacher, masked, large)


def _centring(name, options) -> MovingCentre | Sinkhorn:
    kind = options.get("kind")
    if kind not in CENTRINGS:
        raise ValueError(f"{name}.centring.kind is {kind!r}; use {' or '.join(CENTRINGS)}")
    given = {key: value for key, value in options.items() if key != "kind"}
    known = {f.name for f in dataclasses.fields(CENTRINGS[kind])}
    for key in given:
        if key not in known:
            raise ValueError(f"{name}.centring.{key} is no option of {kind}; there are {', '.join(known)}")
    return CENTRINGS[kind](**given)


def _projection(name, options, context):
    fields = {f.name for f in dataclasses.fields(ProjectionHead)} - {"parent", "name", "dtype"}
    for key in options:
        if key not in fields:
            raise ValueError(f"{name}.head.{key} is no option; there are {', '.join(sorted(fields))}")
    return ProjectionHead(**options, dtype=jnp.dtype(context.dtype))


def _of_teacher(name, options, teacher, context):
    """The same head for another encoder that teaches, None where the average does."""
    return _projection(name, options, context) if teacher else None


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classification": classification,
    "contrastive": contrastive,
    "dino": dino,
    "gram": gram,
    "ibot": ibot,
    "koleo": koleo,
}


def build(options: Mapping, context: Context) -> Objective:
    """The objective of kind options["kind"], from its other options."""
    arguments = {key: value for key, value in options.items() if key != "kind"}
    return OBJECTIVES[options["kind"]](**arguments, context=context)
