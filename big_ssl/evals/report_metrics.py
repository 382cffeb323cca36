"""The report's headlines and tables of the newest metrics, by the kinds in the metrics' names."""

from collections.abc import Callable
from typing import Any, NamedTuple

from markupsafe import Markup

from big_ssl.evals import page
from big_ssl.evals.report_curves import KNN, RETRIEVAL, ZERO_SHOT, Series


class MetricKind(NamedTuple):
    """How the metrics "eval/<kind>/<set>/<metric>" are shown.

    headline: history -> markup at the top of the page, "" for none; table: the same, of all sets.
    """

    headline: Callable[[Series], Markup]
    table: Callable[[Series], Markup]


def headlines(history: Series) -> list[Markup]:
    """The headlines of the kinds that a run has metrics of."""
    return [html for kind in KINDS.values() if (html := kind.headline(history))]


def tables(history: Series) -> list[Markup]:
    """The tables of the kinds that a run has metrics of, those without a form of their own last, in one."""
    return [html for kind in KINDS.values() if (html := kind.table(history))] + _further(history)


def _further(history):
    others = dict.fromkeys(key.split("/")[1] for key in history if key.count("/") == 3)
    rows = []
    for kind in others:
        if f"eval/{kind}/" in _PREFIXES or kind == "failures":
            continue
        for row in _rows(history, f"eval/{kind}/"):
            shown = {metric: f"{value:.4g}" for metric, value in row["metrics"].items()}
            rows.append(row | dict(kind=kind, metrics=shown))
    return [page.macros("metrics.html").further_table(rows)] if rows else []


def _nothing(history):
    del history
    return Markup("")


def _zero_shot_headline(history):
    row = _headline(zero_shot_rows(history))
    return page.macros("metrics.html").zero_shot_headline(row, page.NOTES) if row else Markup("")


def _zero_shot_table(history):
    rows = zero_shot_rows(history)
    return page.macros("metrics.html").zero_shot_table(rows) if rows else Markup("")


def _retrieval_table(history):
    rows = _rows(history, RETRIEVAL)
    return page.macros("metrics.html").retrieval_table(rows) if rows else Markup("")


def _neighbours_headline(history):
    row = _neighbours(history)
    return page.macros("metrics.html").neighbours_headline(row, page.NOTES) if row else Markup("")


def zero_shot_rows(history: Series) -> list[dict[str, Any]]:
    """One row per set: its last top1, top5, chance, pixel_1nn_top1 (None if absent) and `times` chance."""
    rows = _rows(history, ZERO_SHOT)
    return [row | {"times": _ratio(row["metrics"].get("top1"), row["metrics"].get("chance"))} for row in rows]


def _rows(history: Series, prefix: str) -> list[dict[str, Any]]:
    """Collects `prefix<set>/<metric>` into one row per set, the sets of page.NOTES first."""
    rows: dict[str, dict[str, Any]] = {}
    for key, points in history.items():
        if key.startswith(prefix):
            name, metric = key.removeprefix(prefix).rsplit("/", 1)
            row = rows.setdefault(name, {"set": name, "step": 0, "metrics": {}} | _kind(name))
            row["metrics"][metric] = points[-1][1]
            row["step"] = max(row["step"], points[-1][0])
    order = {name: i for i, name in enumerate(page.NOTES)}
    return sorted(rows.values(), key=lambda row: order.get(row["base"], len(order)))


def _kind(name: str) -> dict[str, Any]:
    """Splits a set's name, <base>[_unseen][_no_flags]: which concepts, and with or without flags."""
    with_flags = name.removesuffix("_no_flags")
    base = with_flags.removesuffix("_unseen")
    return {"base": base, "unseen": base != with_flags, "no_flags": with_flags != name}


def _headline(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The rows of the zero-shot headline: the first set as a whole, and its stricter variants."""
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
    chosen = {name: variants.get(kind) for kind, name in names.items()}
    return chosen | {"all": chosen["all"] or rows[0]}


def _neighbours(history: Series) -> dict[str, Any] | None:
    """The numbers of the k-NN headline: accuracy with the largest k on the first set and its unseen concepts,
    with the baselines of pixels and of the most frequent class."""
    rows = _rows(history, KNN)
    if not rows:
        return None
    k = max(int(key[1:-5]) for key in rows[0]["metrics"] if key.startswith("k"))
    sets = [
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
    unseen = next((row for row in sets if row["unseen"]), None)
    return {"k": k, "all": sets[0], "unseen": unseen if unseen is not sets[0] else None}


def _ratio(value: float | None, chance: float | None) -> float | None:
    return value / chance if value is not None and chance else None


KINDS = {
    "zero_shot": MetricKind(_zero_shot_headline, _zero_shot_table),
    "retrieval": MetricKind(_nothing, _retrieval_table),
    "knn": MetricKind(_neighbours_headline, _nothing),
}
# Kinds with curves or tables of their own.
_PREFIXES = (ZERO_SHOT, RETRIEVAL, KNN)
