"""Prompt templates: texts with {} for a class's name. Training draws one, evaluation averages over all."""

import functools
import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path

from big_ssl import io


def labels_file(name: str) -> Path:
    """A file of class names or templates in this package."""
    return Path(str(importlib.resources.files("big_ssl.data") / "labels" / name))


@functools.cache
def _openai():
    """The 80 templates that CLIP was evaluated with on ImageNet."""
    return tuple(labels_file("openai_templates.txt").read_text(encoding="utf-8").splitlines())


# The named sets. UniCL trains and evaluates with OpenAI's and the bare name (microsoft/UniCL, data/imagenet).
NAMED: dict[str, Callable[[], tuple[str, ...]]] = {
    "openai": _openai,
    "unicl": lambda: ("{}.", *_openai()),
}


def templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of an option: "openai", "unicl", one template, a text file with one per line, or a list.

    Raises ValueError for a template without {}, the place of the class name, and for an empty list.
    """
    if isinstance(spec, str) and spec in NAMED:
        return NAMED[spec]()
    if isinstance(spec, str):
        spec = [spec] if "{}" in spec else read_lines(spec)
    for template in spec:
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(f"templates: {template!r} has no {{}}, the place of the class name")
    if not spec:
        raise ValueError("templates: there are none; ('{}',) is the bare class name")
    return tuple(spec)


def cleaned(name: str) -> str:
    """A class's name as UniCL puts it into a template: without commas, plus signs as spaces
    (microsoft/UniCL, data/language/prompt_engineering.py)."""
    return name.replace(",", "").replace("+", " ")


def read_lines(path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    lines = io.as_path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
