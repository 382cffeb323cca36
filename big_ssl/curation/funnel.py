"""The filter funnel: how many images and image-text pairs each rule dropped.

A record is one image, and each of its texts is one pair. A dropped image drops all its pairs, so in both
columns the input equals the output plus the sum of the dropped.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from matplotlib.figure import Figure

from big_ssl import io
from big_ssl.curation.filters import IMAGE_RULES, NO_TEXT, TEXT_RULES, Decision

# The plot's labels of the reasons.
_LABELS = {
    "unreadable": "unreadable",
    "small": "too small",
    "narrow": "too long and narrow",
    "many_texts": "too many texts",
    "evaluation_duplicate": "in an evaluation set",
    "shared": "shared by many images",
    "rare": "a rare word or pair",
    "short": "too short",
    "long": "too long",
    "foreign": "another language",
}
_KEPT, _DROPPED, _INK, _MUTED = "#0072b2", "#d9dde3", "#1f2430", "#646b7a"


def tally(decision: Decision) -> Counter:
    """One record's counts {(column, reason): count}; columns "images" and "pairs", reason "" for kept.

    `table` takes their sum over all records.
    """
    reasons = decision.texts or (decision.image,) * decision.pairs
    return Counter({("images", decision.image): 1}) + Counter(("pairs", reason) for reason in reasons)


def total(tallies: Iterable[Counter]) -> Counter:
    """The sum of tallies."""
    counts: Counter = Counter()
    for record_counts in tallies:
        counts.update(record_counts)
    return counts


def table(counts: Mapping[tuple[str, str], int]) -> dict:
    """The funnel {input, dropped: [one row per rule, in order], output}, each row with `images` and `pairs`.

    A text rule drops no images; the row no_text counts the images left without texts.
    """
    reasons = (*IMAGE_RULES, *TEXT_RULES, NO_TEXT)
    dropped = [dict(rule=reason, **_row(counts, (reason,))) for reason in reasons]
    return dict(input=_row(counts, (*reasons, "")), dropped=dropped, output=_row(counts, ("",)))


def write(folder: str, funnel: Mapping, limits: Mapping) -> None:
    """Writes funnel.json and funnel.png beside the dataset.

    Args:
      folder: the output folder.
      funnel: `table`'s dict.
      limits: the thresholds, stored in funnel.json.
    """
    path = io.as_path(folder)
    text = json.dumps(dict(limits=dict(limits), **funnel), indent=2, ensure_ascii=False)
    (path / "funnel.json").write_text(text + "\n")
    with (path / "funnel.png").open("wb") as file:
        figure(funnel).savefig(file, format="png", dpi=160, bbox_inches="tight")


def figure(funnel: Mapping) -> Figure:
    """Draws one bar per rule: the pairs left after it, and those it dropped."""
    rows = [row for row in funnel["dropped"] if row["rule"] != NO_TEXT]
    labels = ["input", *(_LABELS[row["rule"]] for row in rows)]
    dropped = [0, *(row["pairs"] for row in rows)]
    left = funnel["input"]["pairs"]
    plot = Figure(figsize=(8, 0.36 * len(labels) + 0.9))
    axes = plot.add_subplot()
    for i, count in enumerate(dropped):
        left -= count
        axes.barh(i, left, color=_KEPT, height=0.7)
        axes.barh(i, count, left=left, color=_DROPPED, height=0.7)
        note = f"{left:,}" + (f"  (−{count:,})" if count else "")
        axes.text(left + count, i, f" {note}", va="center", color=_INK, fontsize=9)
    axes.set_yticks(range(len(labels)), labels, color=_INK)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_xlim(0, 1.22 * max(funnel["input"]["pairs"], 1))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    images = f"{funnel['output']['images']:,} of {funnel['input']['images']:,} images"
    axes.set_title(f"Pairs left after each rule; {images} kept", loc="left", color=_INK, fontsize=11)
    return plot


def _row(counts, reasons):
    return {
        column: sum(counts.get((column, reason), 0) for reason in reasons) for column in ("images", "pairs")
    }
