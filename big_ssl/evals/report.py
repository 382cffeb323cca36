"""The report of a run: one HTML page that needs neither a network nor a script.

`write_report` reads workdir/metrics.jsonl and writes workdir/report/index.html. A section without numbers
is left out, so any run can have a report.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from big_ssl import io
from big_ssl.evals import page, plots, report_metrics
from big_ssl.evals.report_curves import Series, panels
from big_ssl.evals.report_sections import EvalSection


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str,
    facts: Mapping[str, str],
    command: str = "",
    task: Sequence[str] = (),
    sections: Sequence[EvalSection] = (),
) -> epath.Path:
    """Writes workdir/report/index.html from workdir/metrics.jsonl.

    The page contains all that it shows; curves and figures lie beside it as PNGs, too.

    Args:
      workdir: of the run.
      title: the page's.
      facts: rows of the small table.
      command: makes the page again, "" for none.
      task: paragraphs on what the run learns.
      sections: what the evaluators returned; of those with equal names the first counts.

    Returns:
      The page's path.
    """
    history = read_metrics(io.as_path(workdir) / "metrics.jsonl")
    folder = io.as_path(workdir) / "report"
    by_name: dict[str, EvalSection] = {}
    for section in sections:
        by_name.setdefault(section.name, section)
    text = page.render(
        "report.html",
        title=title,
        facts=facts,
        command=command,
        task=task,
        headlines=report_metrics.headlines(history),
        loss=_loss_ends(history),
        panels=[_panel(folder, panel) for panel in panels(history, report_metrics.zero_shot_rows(history))],
        tables=report_metrics.tables(history),
        sections=[_section(folder, section) for section in by_name.values()],
    )
    path = folder / "index.html"
    io.write_atomically(path, text.encode())
    return path


def read_metrics(path) -> Series:
    """Reads metrics.jsonl into {key: [(step, value), ...]}, in order of step, finite values only.

    A run that was cut off and resumed repeats some steps: the later line counts. It may also have left a torn
    line behind, which is skipped.
    """
    series: dict[str, dict[int, float]] = {}
    with io.as_path(path).open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            step = int(record.pop("step"))
            for key, value in record.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    series.setdefault(key, {})[step] = float(value)
    return {key: sorted(points.items()) for key, points in series.items()}


def _loss_ends(history: Series) -> dict[str, float] | None:
    points = history.get("train/loss")
    return {"first": points[0][1], "last": points[-1][1], "step": points[-1][0]} if points else None


def _panel(folder: epath.Path, panel: dict[str, Any]) -> dict[str, str]:
    name = re.sub(r"\W+", "_", panel["alt"].lower())
    return {
        "uri": _written(folder / f"{name}.png", panel["png"]),
        "alt": panel["alt"],
        "caption": panel["caption"],
    }


def _section(folder: epath.Path, section: EvalSection) -> dict[str, Any]:
    shown = {"id": section.name, "title": section.title, "text": section.text, "html": section.html}
    if section.figure is None:
        return shown | {"uri": ""}
    png = plots.figure_png(section.figure, tight=True)
    # In a browser's pixels, of which there are 96 in an inch.
    width = round(96 * section.figure.get_figwidth())
    return shown | {"uri": _written(folder / f"{section.name}.png", png), "width": width}


def _written(path: epath.Path, png: bytes) -> str:
    """Writes a PNG and returns its data: URI."""
    io.write_atomically(path, png)
    return plots.data_uri(png)
