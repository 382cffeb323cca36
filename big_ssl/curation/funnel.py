"""What a filter kept and why it dropped the rest: counts of images and of pairs of an image and a text.

Every record is one image, and each of its texts one pair. Images that go take all their pairs along, so
in both columns what came in is what stayed and the sum of what was dropped.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from matplotlib.figure import Figure

from big_ssl import io
from big_ssl.curation.filters import IMAGE_RULES, NO_TEXT, TEXT_RULES, Verdict

# What to call the reasons on the plot.
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


def tally(verdict: Verdict) -> Counter:
    """The counts of one record, {(column, reason)}: "images" and "pairs", reason "" for what stays.

    The sum of all records' is what `table` takes.
    """
    reasons = verdict.texts or (verdict.image,) * verdict.pairs
    return Counter({("images", verdict.image): 1}) + Counter(("pairs", reason) for reason in reasons)


def total(tallies: Iterable[Counter]) -> Counter:
    """Their sum."""
    counts: Counter = Counter()
    for each in tallies:
        counts.update(each)
    return counts


def table(counts: Mapping[tuple[str, str], int]) -> dict:
    """{input, dropped: [one row a rule, in order], output}, each with `images` and `pairs`.

    A rule for texts drops no images; those left without texts are the row no_text.
    """
    reasons = (*IMAGE_RULES, *TEXT_RULES, NO_TEXT)
    dropped = [dict(rule=reason, **_row(counts, (reason,))) for reason in reasons]
    return dict(input=_row(counts, (*reasons, "")), dropped=dropped, output=_row(counts, ("",)))


def write(folder: str, found: Mapping, limits: Mapping) -> None:
    """Writes funnel.json (the table and the limits) and funnel.png beside the set."""
    place = io.as_path(folder)
    text = json.dumps(dict(limits=dict(limits), **found), indent=2, ensure_ascii=False)
    (place / "funnel.json").write_text(text + "\n")
    with (place / "funnel.png").open("wb") as file:
        figure(found).savefig(file, format="png", dpi=160, bbox_inches="tight")


def figure(found: Mapping) -> Figure:
    """A bar of the pairs left after each rule, with what it dropped."""
    rows = [row for row in found["dropped"] if row["rule"] != NO_TEXT]
    labels = ["found", *(_LABELS[row["rule"]] for row in rows)]
    dropped = [0, *(row["pairs"] for row in rows)]
    left = found["input"]["pairs"]
    drawn = Figure(figsize=(8, 0.36 * len(labels) + 0.9))
    axes = drawn.add_subplot()
    for i, lost in enumerate(dropped):
        left -= lost
        axes.barh(i, left, color=_KEPT, height=0.7)
        axes.barh(i, lost, left=left, color=_DROPPED, height=0.7)
        note = f"{left:,}" + (f"  (−{lost:,})" if lost else "")
        axes.text(left + lost, i, f" {note}", va="center", color=_INK, fontsize=9)
    axes.set_yticks(range(len(labels)), labels, color=_INK)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.set_xlim(0, 1.22 * max(found["input"]["pairs"], 1))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    images = f"{found['output']['images']:,} of {found['input']['images']:,} images"
    axes.set_title(f"Pairs left after each rule; {images} stay", loc="left", color=_INK, fontsize=11)
    return drawn


def _row(counts, reasons):
    return {
        column: sum(counts.get((column, reason), 0) for reason in reasons) for column in ("images", "pairs")
    }
