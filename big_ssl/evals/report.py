"""The report of a run: one HTML page that needs neither a network nor a script.

`write_report` reads workdir/metrics.jsonl and writes workdir/report/index.html. A section whose numbers or
pictures the run does not have is left out, so any run can have a report.
"""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from etils import epath

from big_ssl import io
from big_ssl.evals import plots, report_texts
from big_ssl.evals.report_curves import KNN, RETRIEVAL, ZERO_SHOT, Series, panels
from big_ssl.evals.report_pictures import Picture
from big_ssl.evals.report_texts import Scene

# Facts that have a place of their own on the page rather than a row of the table.
_PLACED_FACTS = ("command", "task")


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str,
    scenes: dict[str, Scene],
    encode_text: Callable[[list[str]], np.ndarray],
    queries: Sequence[str],
    facts: dict[str, str],
    pictures: Sequence[Picture] = (),
) -> epath.Path:
    """Writes workdir/report/index.html from workdir/metrics.jsonl and the scenes, and returns its path.

    The page holds all it shows; curves and pictures lie beside it as PNGs as well.

    scenes: by name, the first is the one of the headline and the galleries, others are shown in short.
    encode_text: texts to float[len(texts), D] in the scenes' space; called once, only if there are scenes.
    queries: free texts for the gallery. facts: rows of the small table, except "command", which says at the
    bottom how to make the page again, and "task", which takes the place of the text on what the task is.
    pictures: sections of their own.
    """
    series = read_metrics(io.as_path(workdir) / "metrics.jsonl")
    zero_shot = zero_shot_rows(series, list(scenes))
    texts = report_texts.unit(encode_text(list(queries))) if scenes and queries else None
    folder = io.as_path(workdir) / "report"
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            facts={key: value for key, value in facts.items() if key not in _PLACED_FACTS},
            command=facts.get("command"),
            task=facts.get("task"),
            notes=report_texts.NOTES,
            headline=_headline(zero_shot),
            neighbours=_neighbours(series),
            loss=_loss_ends(series),
            zero_shot=zero_shot,
            retrieval=retrieval_rows(series, list(scenes)),
            panels=[_panel(folder, panel) for panel in panels(series, zero_shot)],
            pictures=[_section(folder, picture) for picture in pictures],
            scenes=[
                report_texts.scene_view(*item, queries, texts, short=i > 0)
                for i, item in enumerate(scenes.items())
            ],
        )
    )
    path = folder / "index.html"
    io.write_atomically(path, page.encode())
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


def zero_shot_rows(series: Series, scenes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a set: its last top1, top5, chance, pixel_1nn_top1 (None where absent) and `times` chance."""
    rows = _rows(series, ZERO_SHOT, scenes)
    return [row | {"times": _ratio(row["metrics"].get("top1"), row["metrics"].get("chance"))} for row in rows]


def retrieval_rows(series: Series, scenes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a set, its last recalls, chances and baseline in `metrics`."""
    return _rows(series, RETRIEVAL, scenes)


def _rows(series: Series, prefix: str, scenes: Sequence[str]) -> list[dict[str, Any]]:
    """Collects `prefix<set>/<metric>` into a row a set; the scenes' sets first, in the scenes' order."""
    rows: dict[str, dict[str, Any]] = {}
    for key, points in series.items():
        if key.startswith(prefix):
            name, metric = key.removeprefix(prefix).rsplit("/", 1)
            row = rows.setdefault(name, {"set": name, "step": 0, "metrics": {}} | _kind(name))
            row["metrics"][metric] = points[-1][1]
            row["step"] = max(row["step"], points[-1][0])
    order = {name: i for i, name in enumerate(scenes)}
    return sorted(rows.values(), key=lambda row: order.get(row["base"], len(order)))


def _kind(name: str) -> dict[str, Any]:
    """Splits a set's name, <base>[_unseen][_no_flags]: which concepts, and with or without flags."""
    rest = name.removesuffix("_no_flags")
    base = rest.removesuffix("_unseen")
    return {"base": base, "unseen": base != rest, "no_flags": rest != name}


def _headline(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rows that the headline speaks of: the first set as a whole, and its stricter variants."""
    rows = [row for row in rows if "top1" in row["metrics"]]
    if not rows:
        return None
    variants = {(row["unseen"], row["no_flags"]): row for row in rows if row["base"] == rows[0]["base"]}
    names = {
        (False, False): "all",
        (False, True): "no_flags",
        (True, False): "unseen",
        (True, True): "hardest",
    }
    found = {name: variants.get(kind) for kind, name in names.items()}
    return found | {"all": found["all"] or rows[0]}


def _neighbours(series: Series) -> dict[str, Any] | None:
    """What the headline of a run without texts says: of the first set, and of its unseen concepts, how
    often the largest of the ks is right, pixels and the most frequent class beside it."""
    rows = _rows(series, KNN, list(report_texts.NOTES))
    if not rows:
        return None
    k = max(int(key[1:-5]) for key in rows[0]["metrics"] if key.startswith("k"))
    found = [
        {
            "set": row["set"],
            "base": row["base"],
            "unseen": row["unseen"],
            "majority": row["metrics"]["majority"],
        }
        | {"top1": row["metrics"][f"k{k}_top1"], "pixels": row["metrics"].get(f"pixel_k{k}_top1")}
        for row in rows
        if row["base"] == rows[0]["base"]
    ]
    unseen = next((row for row in found if row["unseen"]), None)
    return {"k": k, "all": found[0], "unseen": unseen if unseen is not found[0] else None}


def _loss_ends(series: Series) -> dict[str, float] | None:
    points = series.get("train/loss")
    return {"first": points[0][1], "last": points[-1][1], "step": points[-1][0]} if points else None


def _ratio(value: float | None, chance: float | None) -> float | None:
    return value / chance if value is not None and chance else None


def percent(value: float | None) -> str:
    """41.6% or, below one per cent, 0.05%; a dash where there is no number and a bare 0% for exactly zero."""
    if value is None:
        return "–"
    return "0%" if value == 0 else f"{value:.2%}" if value < 0.01 else f"{value:.1%}"


def times(value: float | None) -> str:
    """1,190× or, below ten, 2.3×; a dash where there is no number."""
    return "–" if value is None else f"{value:,.0f}×" if value >= 10 else f"{value:.1f}×"


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "times": times, "thousands": "{:,}".format}
    return environment


def _panel(folder: epath.Path, panel: dict[str, Any]) -> dict[str, str]:
    name = re.sub(r"\W+", "_", panel["alt"].lower())
    return {
        "uri": _kept(folder / f"{name}.png", panel["png"]),
        "alt": panel["alt"],
        "caption": panel["caption"],
    }


def _section(folder: epath.Path, picture: Picture) -> dict[str, Any]:
    png = plots.figure_png(picture.figure, tight=True)
    # In a browser's pixels, of which there are 96 in an inch.
    width = round(96 * picture.figure.get_figwidth())
    uri = _kept(folder / f"{picture.name}.png", png)
    return {"id": picture.name, "title": picture.title, "text": picture.text, "uri": uri, "width": width}


def _kept(path: epath.Path, png: bytes) -> str:
    """A PNG's data: URI, once it is written."""
    io.write_atomically(path, png)
    return plots.data_uri(png)
