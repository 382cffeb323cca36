"""The report's curves, for the metrics that a run has."""

import re
from typing import Any

from big_ssl.evals import plots

Series = dict[str, list[tuple[int, float]]]
ZERO_SHOT, RETRIEVAL, KNN, SWEEP = "eval/zero_shot/", "eval/retrieval/", "eval/knn/", "eval/linear_sweep/"


def panels(series: Series, zero_shot: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of the metrics that a run has, each with a sentence on how to read it."""
    accuracies = _zero_shot_lines(series, zero_shot)
    dashed = " Dashed: concepts never seen in training." if any(line.dashed for line in accuracies) else ""
    first: dict[str, Any] = zero_shot[0] if zero_shot else {"base": "", "set": "", "metrics": {}}
    pixel = {f"pixel 1-NN, {first['base']}": first["metrics"].get("pixel_1nn_top1")}
    losses = of_objectives(series, "loss")
    loss = {"train/loss": "loss"} | (losses if len(losses) > 1 else {})
    recall = f"{RETRIEVAL}{first['set']}/"
    directions = {f"{recall}image_to_text_r1": "image → name", f"{recall}text_to_image_r1": "name → image"}
    curves = [
        plots.panel("Loss", _lines(series, loss, noisy=True), "The objective of training: lower is better."),
        plots.panel(
            "Temperature",
            _lines(series, of_objectives(series, "temperature")),
            "Learnt with the weights. Lower: sharper differences between good and bad matches.",
        ),
        plots.panel(
            "Right name within the training batch",
            _lines(series, of_objectives(series, "image_to_text_accuracy"), noisy=True),
            "On training images, among the few names of one batch: far easier than the tests.",
            percent=True,
        ),
        plots.panel(
            "Zero-shot top-1",
            accuracies,
            "On images outside the training set, among all names." + dashed,
            references={label: value for label, value in pixel.items() if value is not None},
            percent=True,
        ),
        plots.panel(
            f"Retrieval R@1, {first['base']}",
            _lines(series, directions),
            "How often the very first answer is right, in both directions.",
            percent=True,
        ),
        plots.panel(
            "Learning rate",
            _lines(series, {"train/learning_rate": "learning rate"}),
            "The schedule of the step size.",
        ),
        *_probes(series),
        *_teacher(series),
    ]
    return [panel for panel in curves if panel is not None]


def _probes(series):
    """One panel per set for k-NN, with its baselines, and for linear heads."""
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
            "How often the nearest training images vote for the right class.",
            references={labels[key]: value for key, value in last.items()},
            percent=True,
        )
    for name in _sets(series, SWEEP):
        base = f"{SWEEP}{name}/"
        yield plots.panel(
            f"Linear heads, {name.replace('_', ' ')}",
            _lines(series, {f"{base}top1": "test", f"{base}validation_top1": "validation"}),
            "The best of many linear classifiers on frozen features, chosen on validation.",
            percent=True,
        )


def _sets(series, prefix):
    return list(
        dict.fromkeys(key.removeprefix(prefix).split("/")[0] for key in series if key.startswith(prefix))
    )


def _teacher(series):
    """Panels that show a collapse, and how far the student is behind."""
    for key, name in of_objectives(series, "teacher_entropy").items():
        yield plots.panel(
            f"Teacher's entropy, {name}",
            _lines(
                series,
                {key: "of each target", f"train/{name}/target_spread": "of their mean"},
                noisy=True,
            ),
            "The entropy of the teacher's target for one image, and of the mean over all images. "
            "If the curves meet, at any height, training has collapsed: all images have the same target.",
        )
    yield plots.panel(
        "Student behind teacher",
        _lines(series, of_objectives(series, "target_kl"), noisy=True),
        "The KL divergence of the student's predictions from the targets: the reducible part of the loss.",
    )


def of_objectives(series: Series, metric: str) -> dict[str, str]:
    """{"train/<objective>/<metric>": objective} of the objectives that have this metric."""
    matches = (re.fullmatch(rf"train/([^/]+)/{metric}", key) for key in series)
    return {match[0]: match[1] for match in matches if match}


def _lines(series: Series, labels: dict[str, str], noisy: bool = False) -> list[plots.Line]:
    present = [(label, series[key]) for key, label in labels.items() if key in series]
    return [
        plots.Line(*line, colour, noisy=noisy) for line, colour in zip(present, plots.COLOURS, strict=False)
    ]


def _zero_shot_lines(series: Series, rows: list[dict[str, Any]]) -> list[plots.Line]:
    """One colour per base set, dashed for its unseen concepts; the table has the variants without flags."""
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
