"""The sections that an evaluator adds to the report's page."""

from typing import NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure


class EvalSection(NamedTuple):
    """A section of the page.

    name: unique on the page, where the first section of a name counts; also the figure's file name.
    text: what is shown, and how to read it. figure: None for none. html: markup below the figure.
    """

    name: str
    title: str
    text: str = ""
    figure: Figure | None = None
    html: Markup = Markup("")
