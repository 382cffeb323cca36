"""Typed fields of a stream's batch, made from a source's raw records.

A config names them: `fields=dict(image=dict(kind="image", ...), label=dict(kind="label", key="class"))` gives
batches with "image" and "label". A kind is one class (base.Field), in one file, and a line of KINDS. Shapes,
loading and replacing on the host, transforms on the device and counters all follow from it.
"""

import dataclasses
from collections.abc import Mapping

from big_ssl.data.fields.base import Context, Draws, Field
from big_ssl.data.fields.identity import Identity
from big_ssl.data.fields.image import Image
from big_ssl.data.fields.label import Label, MultiLabel
from big_ssl.data.fields.spatial import Boxes, Depth, Mask
from big_ssl.data.fields.text import Answers, Text

KINDS: dict[str, type[Field]] = {
    "image": Image,
    "text": Text,
    "label": Label,
    "multilabel": MultiLabel,
    "boxes": Boxes,
    "mask": Mask,
    "depth": Depth,
    "answers": Answers,
    "identity": Identity,
}

__all__ = ["KINDS", "Context", "Draws", "Field", "Image", "build", "opened"]


def build(config: Mapping[str, Mapping], length: int) -> dict[str, Field]:
    """The fields of a stream's config.data.fields, without their source.

    Args:
      config: {field: its kind and that kind's options}.
      length: tokens of a text.

    Raises:
      ValueError: naming the field and the error.
    """
    fields = {}
    for name, options in config.items():
        arguments = {key: value for key, value in options.items() if key != "kind"}
        try:
            fields[name] = KINDS[options["kind"]](**arguments, context=Context(name, {}, length))
        except ValueError as error:
            raise ValueError(f"fields.{name}.{error}") from error
    images = {name: field for name, field in fields.items() if isinstance(field, Image)}
    _check_channels(images)
    crops = {name: image.cropper for name, image in images.items()}
    texts = [name for name, field in fields.items() if isinstance(field, Text)]
    for name, field in fields.items():
        if (text := field.text_field()) and text not in texts:
            known = ", ".join(texts) or "none"
            raise ValueError(f"fields.{name}.text is {text!r}; there are the text fields {known}")
        if field.image_field():
            _check_image(name, field.image_field(), images)
            context = field.context._replace(crops=crops)
            fields[name] = dataclasses.replace(field, context=context)
    return fields


def opened(fields: Mapping[str, Field], source, tokenizer) -> dict[str, Field]:
    """The same fields, able to load records of the source."""
    contexts = {name: f.context._replace(source=source, tokenizer=tokenizer) for name, f in fields.items()}
    return {name: dataclasses.replace(f, context=contexts[name]) for name, f in fields.items()}


def _check_channels(images):
    """Fields of one key share the decoded image."""
    first: dict = {}
    for name, image in images.items():
        channels = first.setdefault(image.key, image).channels
        if image.channels != channels:
            raise ValueError(
                f"fields.{name}.channels is {image.channels}; another field of {image.key!r} has {channels}"
            )


def _check_image(name, image, images):
    if image not in images:
        known = ", ".join(images) or "none"
        raise ValueError(f"fields.{name}.image is {image!r}; there are the image fields {known}")
    if images[image].mixes:
        raise ValueError(f"fields.{name}: mixup and cutmix of its image {image} would not move it")
