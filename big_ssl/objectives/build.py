"""The table of objectives, from which configs choose by `kind`."""

from collections.abc import Callable, Mapping

from big_ssl.objectives import (
    classification,
    contrastive,
    depth,
    detection,
    dino,
    gram,
    ibot,
    koleo,
    segmentation,
)
from big_ssl.objectives.base import Context, Objective

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classification": classification.build,
    "contrastive": contrastive.build,
    "depth": depth.build,
    "detection": detection.build,
    "dino": dino.build,
    "gram": gram.build,
    "ibot": ibot.build,
    "koleo": koleo.build,
    "segmentation": segmentation.build,
}


def build(options: Mapping, context: Context) -> Objective:
    """Builds the objective of kind options["kind"] from its other options; the weight is the step's."""
    arguments = {key: value for key, value in options.items() if key not in ("kind", "weight")}
    return OBJECTIVES[options["kind"]](**arguments, context=context)
