"""The Jinja templates of the report's page, and how they write numbers."""

import functools
from pathlib import Path
from typing import Any

import jinja2

# Notes of the page on an evaluation set of this name. These sets come first.
NOTES = {
    "twemoji": "flat colour drawings, in a style that was kept out of training",
    "openmoji": "outlined line drawings, in a style that was kept out of training: the harder one",
}


def percent(value: float | None) -> str:
    """41.6% or, below one per cent, 0.05%; a dash for no number and a bare 0% for exactly zero."""
    if value is None:
        return "–"
    return "0%" if value == 0 else f"{value:.2%}" if value < 0.01 else f"{value:.1%}"


def times(value: float | None) -> str:
    """1,190× or, below ten, 2.3×; a dash for no number."""
    return "–" if value is None else f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"


def macros(template: str) -> Any:
    """The macros of a template, as functions that return markup."""
    return _environment().get_template(template).module


def render(template: str, **values) -> str:
    """The text of a template."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "times": times, "thousands": "{:,}".format}
    return environment
