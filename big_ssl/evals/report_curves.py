"""The report's curves, of what a run has numbers for."""

from typing import Any

from big_ssl.evals import plots

Series = dict[str, list[tuple[int, float]]]
ZERO_SHOT, RETRIEVAL, KNN, SWEEP = "eval/zero_shot/", "eval/retrieval/", "eval/knn/", "eval/linear_sweep/"
# The terms of self-distillation, and what they look at.
_TAUGHT = {"dino": "class tokens", "ibot": "masked patches"}


def panels(series: Series, zero_shot: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves that the run has numbers for, each with a sentence on how to read it."""
    accuracies = _zero_shot_lines(series, zero_shot)
    dashed = " Dashed: concepts never seen in training." if any(line.dashed for line in accuracies) else ""
    first: dict[str, Any] = zero_shot[0] if zero_shot else {"base": "", "set": "", "metrics": {}}
    pixel = {f"pixel 1-NN, {first['base']}": first["metrics"].get("pixel_1nn_top1")}
    loss = {"train/loss": "loss", "train/contrastive": "contrastive part"}
    loss |= {f"train/{term}": what for term, what in _TAUGHT.items()}
    if series.get("train/loss") == series.get("train/contrastive"):
        del loss["train/contrastive"]
    recall = f"{RETRIEVAL}{first['set']}/"
    ways = {f"{recall}image_to_text_r1": "picture → name", f"{recall}text_to_image_r1": "name → picture"}
    found = [
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
        *_probes(series),
        *_teacher(series),
    ]
    return [panel for panel in found if panel is not None]


def _probes(series):
    """A panel a set for nearest neighbours, beside pixels and the most frequent class; for linear heads."""
    for name in _sets(series, KNN):
        base = f"{KNN}{name}/"
        ks = sorted(int(key[len(base) + 1 : -5]) for key in series if key.startswith(f"{base}k"))
        last = {
            key: series[base + key][-1][1]
            for key in (f"pixel_k{ks[-1]}_top1", "majority")
            if base + key in series
        }
        labels = {f"pixel_k{ks[-1]}_top1": "16 × 16 pixels instead", "majority": "most frequent class"}
        yield plots.panel(
            f"Neighbours vote, {name.replace('_', ' ')}",
            _lines(series, {f"{base}k{k}_top1": f"{k} nearest" for k in ks}),
            "How often the nearest training pictures vote for the right class.",
            references={labels[key]: value for key, value in last.items()},
            percent=True,
        )
    for name in _sets(series, SWEEP):
        base = f"{SWEEP}{name}/"
        yield plots.panel(
            f"Linear heads, {name.replace('_', ' ')}",
            _lines(series, {f"{base}top1": "test", f"{base}validation_top1": "validation"}),
            "The best of many linear classifiers on what the frozen network gives, chosen on validation.",
            percent=True,
        )


def _sets(series, prefix):
    return list(
        dict.fromkeys(key.removeprefix(prefix).split("/")[0] for key in series if key.startswith(prefix))
    )


def _teacher(series):
    """What shows a collapse, and how far the student is behind."""
    for term, what in _TAUGHT.items():
        base = f"train/{term}_"
        yield plots.panel(
            f"Teacher's entropy, {what}",
            _lines(
                series,
                {f"{base}teacher_entropy": "of each target", f"{base}target_spread": "of their mean"},
                noisy=True,
            ),
            "How undecided the teacher is about one picture, and how many answers it uses over all of them. "
            "Curves that meet at any height are a collapse: every picture is told the same.",
        )
    kl = {f"train/{term}_target_kl": what for term, what in _TAUGHT.items()}
    yield plots.panel(
        "Student behind teacher",
        _lines(series, kl, noisy=True),
        "The KL divergence of the student's answers from the targets: the part of the loss that it could "
        "lose.",
    )


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
            series[f"{ZERO_SHOT}{row['set']}/top1"],
            plots.COLOURS[bases.index(row["base"]) % len(plots.COLOURS)],
            row["unseen"],
        )
        for row in rows
        if "top1" in row["metrics"] and not row["no_flags"]
    ]
