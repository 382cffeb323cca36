"""The report of a run: one HTML page that needs neither a network nor a script.

`write_report` reads workdir/metrics.jsonl and writes workdir/report/index.html. A section whose numbers or
pictures the run does not have is left out, so any run can have a report.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from big_ssl.evals import plots

# What the page says of an evaluation set whose name it knows; it claims nothing of others.
NOTES = {
    "twemoji": "flat colour drawings, in a style that was kept out of training",
    "openmoji": "outlined line drawings, in a style that was kept out of training: the harder one",
}
# Facts that have a place of their own on the page rather than a row of the table.
_PLACED_FACTS = ("command", "task")
_ZERO_SHOT, _RETRIEVAL = "eval/zero_shot/", "eval/retrieval/"
_NEAREST_IMAGES, _NEAREST_NAMES = 8, 5
_SHOWN_IMAGES, _SHOWN_IMAGES_IN_SHORT, _QUERIES_IN_SHORT, _HEAT_MAP_SIDE = 12, 6, 4, 16

Series = dict[str, list[tuple[int, float]]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One evaluation set with its embeddings.

    images: uint8[N, H, W, 3]; names: M strings; labels: int[N] into names; image_embeddings: float32[N, D]
    and text_embeddings: float32[M, D], both L2-normalised; unseen: bool[M], names whose concept was held out
    of training.
    """

    images: np.ndarray
    names: Sequence[str]
    labels: np.ndarray
    image_embeddings: np.ndarray
    text_embeddings: np.ndarray
    unseen: np.ndarray

    def __post_init__(self):
        images, names = len(self.images), len(self.names)
        if not images == len(self.labels) == len(self.image_embeddings):
            raise ValueError("images, labels and image_embeddings of a scene differ in number")
        if not names == len(self.unseen) == len(self.text_embeddings):
            raise ValueError("names, unseen and text_embeddings of a scene differ in number")


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str,
    scenes: dict[str, Scene],
    encode_text: Callable[[list[str]], np.ndarray],
    queries: Sequence[str],
    facts: dict[str, str],
) -> Path:
    """Writes workdir/report/index.html from workdir/metrics.jsonl and the scenes, and returns its path.

    scenes: by name, the first is the one of the headline and the galleries, others are shown in short.
    encode_text: texts to float[len(texts), D] in the scenes' space; called once, only if there are scenes.
    queries: free texts for the gallery. facts: rows of the small table, except "command", which says at the
    bottom how to make the page again, and "task", which takes the place of the text on what the task is.
    """
    series = read_metrics(Path(workdir) / "metrics.jsonl")
    zero_shot = zero_shot_rows(series, list(scenes))
    texts = _unit(encode_text(list(queries))) if scenes and queries else None
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            facts={key: value for key, value in facts.items() if key not in _PLACED_FACTS},
            command=facts.get("command"),
            task=facts.get("task"),
            notes=NOTES,
            headline=_headline(zero_shot),
            loss=_loss_ends(series),
            zero_shot=zero_shot,
            retrieval=retrieval_rows(series, list(scenes)),
            panels=_panels(series, zero_shot),
            scenes=[_scene_view(*item, queries, texts, short=i > 0) for i, item in enumerate(scenes.items())],
        )
    )
    path = Path(workdir) / "report" / "index.html"
    _write_atomically(path, page)
    return path


def read_metrics(path: Path) -> Series:
    """Reads metrics.jsonl into {key: [(step, value), ...]}, in order of step, finite values only.

    A run that was cut off and resumed repeats some steps: the later line counts. It may also have left a torn
    line behind, which is skipped.
    """
    series: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = int(record.pop("step"))
        for key, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(key, {})[step] = float(value)
    return {key: sorted(points.items()) for key, points in series.items()}


def zero_shot_rows(series: Series, scenes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a set: its last top1, top5, chance, pixel_1nn_top1 (None where absent) and `times` chance."""
    rows = _rows(series, _ZERO_SHOT, scenes)
    return [row | {"times": _ratio(row["metrics"].get("top1"), row["metrics"].get("chance"))} for row in rows]


def retrieval_rows(series: Series, scenes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a set, its last recalls, chances and baseline in `metrics`."""
    return _rows(series, _RETRIEVAL, scenes)


def nearest_images(scene: Scene, texts: np.ndarray, count: int) -> np.ndarray:
    """Indices int[Q, count] of the images nearest to texts: float32[Q, D], nearest first."""
    return _largest(_float(texts) @ _float(scene.image_embeddings).T, count)


def nearest_names(scene: Scene, images: Sequence[int], count: int) -> np.ndarray:
    """Indices int[K, count] of the names nearest to the K images with these indices, nearest first."""
    return _largest(_name_similarities(scene, images), count)


def spread_images(scene: Scene, count: int) -> list[int]:
    """Up to `count` image indices, half of them of unseen concepts where there are any.

    Evenly spaced through the set in its own order, so the choice depends on neither the embeddings nor luck.
    """
    unseen = np.asarray(scene.unseen, bool)[np.asarray(scene.labels)]
    hidden = _spread(np.flatnonzero(unseen), count // 2)
    known = _spread(np.flatnonzero(~unseen), count - len(hidden))
    return [int(index) for index in [*known, *hidden]]


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


def _loss_ends(series: Series) -> dict[str, float] | None:
    points = series.get("train/loss") or series.get("train/contrastive")
    return {"first": points[0][1], "last": points[-1][1], "step": points[-1][0]} if points else None


def _panels(series: Series, zero_shot: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The curves that the run has numbers for, each with a sentence on how to read it."""
    accuracies = _zero_shot_lines(series, zero_shot)
    dashed = " Dashed: concepts never seen in training." if any(line.dashed for line in accuracies) else ""
    first: dict[str, Any] = zero_shot[0] if zero_shot else {"base": "", "set": "", "metrics": {}}
    pixel = {f"pixel 1-NN, {first['base']}": first["metrics"].get("pixel_1nn_top1")}
    loss = {"train/loss": "loss", "train/contrastive": "contrastive part"}
    if series.get("train/loss") == series.get("train/contrastive"):
        del loss["train/contrastive"]
    recall = f"{_RETRIEVAL}{first['set']}/"
    ways = {f"{recall}image_to_text_r1": "picture → name", f"{recall}text_to_image_r1": "name → picture"}
    panels = [
        plots.panel("Loss", _lines(series, loss, noisy=True), "What training makes small: lower is better."),
        plots.panel(
            "Temperature",
            _lines(series, {"train/temperature": "temperature"}),
            "Learnt with the weights. Lower: the model commits more sharply to its best match.",
        ),
        plots.panel(
            "Right name within the training batch",
            _lines(series, {"train/image_to_text_accuracy": "picture → name"}, noisy=True),
            "On training pictures, among the few names of one batch: far easier than the tests.",
            percent=True,
        ),
        plots.panel(
            "Zero-shot top-1",
            accuracies,
            "On pictures never trained on, among all names." + dashed,
            references={label: value for label, value in pixel.items() if value is not None},
            percent=True,
        ),
        plots.panel(
            f"Retrieval R@1, {first['base']}",
            _lines(series, ways),
            "How often the very first answer is right, in both directions.",
            percent=True,
        ),
        plots.panel(
            "Learning rate",
            _lines(series, {"train/learning_rate": "learning rate"}),
            "How large the steps are, as planned before the run.",
        ),
    ]
    return [panel for panel in panels if panel is not None]


def _lines(series: Series, labels: dict[str, str], noisy: bool = False) -> list[plots.Line]:
    present = [(label, series[key]) for key, label in labels.items() if key in series]
    return [
        plots.Line(*line, colour, noisy=noisy) for line, colour in zip(present, plots.COLOURS, strict=False)
    ]


def _zero_shot_lines(series: Series, rows: list[dict[str, Any]]) -> list[plots.Line]:
    """A colour a base set, dashed for its unseen concepts; the variants without flags stay in the table."""
    bases = list(dict.fromkeys(row["base"] for row in rows))
    return [
        plots.Line(
            row["base"] + (", unseen" if row["unseen"] else ""),
            series[f"{_ZERO_SHOT}{row['set']}/top1"],
            plots.COLOURS[bases.index(row["base"]) % len(plots.COLOURS)],
            row["unseen"],
        )
        for row in rows
        if "top1" in row["metrics"] and not row["no_flags"]
    ]


def _scene_view(
    name: str, scene: Scene, queries: Sequence[str], texts: np.ndarray | None, short: bool
) -> dict[str, Any]:
    """What the template needs of one scene: its sizes, galleries and, unless in short, the heat map."""
    shown = _QUERIES_IN_SHORT if short else len(queries)
    cards = _image_to_text(scene, spread_images(scene, _SHOWN_IMAGES_IN_SHORT if short else _SHOWN_IMAGES))
    return {
        "name": name,
        "note": NOTES.get(name),
        "short": short,
        "images": len(scene.images),
        "names": len(scene.names),
        "unseen": int(np.sum(scene.unseen)),
        "queries": _text_to_image(scene, queries[:shown], texts[:shown]) if texts is not None else [],
        "cards": cards,
        "right": sum(card["rank"] == 1 for card in cards),
        "hidden": sum(card["unseen"] for card in cards),
        "heat_map": None if short else _heat_map(scene),
    }


def _text_to_image(scene: Scene, queries: Sequence[str], texts: np.ndarray) -> list[dict[str, Any]]:
    similarities = texts @ _float(scene.image_embeddings).T
    nearest = nearest_images(scene, texts, _NEAREST_IMAGES)
    return [
        {"query": query, "images": [_thumbnail(scene, i) | {"similarity": float(row[i])} for i in chosen]}
        for query, row, chosen in zip(queries, similarities, nearest, strict=True)
    ]


def _image_to_text(scene: Scene, images: list[int]) -> list[dict[str, Any]]:
    """A card an image: its nearest names and the rank of the true one, counted from 1."""
    similarities = _name_similarities(scene, images)
    orders = nearest_names(scene, images, len(scene.names))
    cards = []
    for image, row, order in zip(images, similarities, orders, strict=True):
        label = int(scene.labels[image])
        guesses = [_guess(scene, name, row, right=name == label) for name in order[:_NEAREST_NAMES]]
        rank = int(np.flatnonzero(order == label)[0]) + 1
        card = {"guesses": guesses, "rank": rank, "true": _guess(scene, label, row, right=True)}
        cards.append(_thumbnail(scene, image) | card)
    return cards


def _guess(scene: Scene, name: int, similarities: np.ndarray, right: bool) -> dict[str, Any]:
    unseen = bool(scene.unseen[name])
    return {
        "name": scene.names[name],
        "similarity": float(similarities[name]),
        "right": right,
        "unseen": unseen,
    }


def _thumbnail(scene: Scene, image: int) -> dict[str, Any]:
    label = int(scene.labels[image])
    return {
        "index": int(image),
        "uri": plots.image_uri(scene.images[image]),
        "name": scene.names[label],
        "unseen": bool(scene.unseen[label]),
    }


def _heat_map(scene: Scene) -> dict[str, Any]:
    """16 names spread evenly over those that have an image, with the first image of each."""
    labels, first = np.unique(np.asarray(scene.labels), return_index=True)
    chosen = _spread(np.arange(len(labels)), _HEAT_MAP_SIDE)
    labels, images = labels[chosen], first[chosen]
    similarities = _name_similarities(scene, images)[:, labels]
    names, unseen = [scene.names[i] for i in labels], np.asarray(scene.unseen)[labels]
    figure = plots.heat_map(np.asarray(scene.images)[images], names, similarities, unseen)
    right = int(np.sum(np.argmax(similarities, axis=1) == np.arange(len(labels))))
    return {"uri": plots.figure_uri(figure, tight=True), "count": len(labels), "right": right}


def _name_similarities(scene: Scene, images: Sequence[int]) -> np.ndarray:
    return _float(scene.image_embeddings)[np.asarray(images, int)] @ _float(scene.text_embeddings).T


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    # A stable sort: ties always fall to the lower index, so the page is the same each time.
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of the values, from the middles of as many equal stretches."""
    count = min(count, len(values))
    return values[((np.arange(count) + 0.5) * len(values) / max(count, 1)).astype(int)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    # An empty text may encode to the zero vector, which stays zero instead of becoming NaN.
    vectors = _float(vectors)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _float(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


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


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
