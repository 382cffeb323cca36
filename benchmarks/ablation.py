"""Compares a demo with runs of the same recipe in which some objectives have weight 0 or other options.

    python -m benchmarks.ablation --table=ibot --output=DIR [--steps=400] [--seeds=0,1,2]
    python -m benchmarks.ablation --table=hybrid --output=DIR
    python -m benchmarks.ablation --table=unicl --output=DIR --steps=700

Tables: `ibot` (both terms, DINO's alone, masked patches alone, each with KoLeo), `dinov2` (iBOT, and DINOv2
with and without KoLeo), `hybrid` (CLIP's objective, DINOv2's three, all four) and `unicl` (its positives, and
CLIP's loss on the same captions and classes). All variants of a table have equal steps, images and batches;
`untrained` is the network before training. DIR gets results.json, table.md and a folder for each run; the
same command continues after the finished runs. A quick check: --preset=tiny --steps=4 --seeds=0.
Exit code 2, and one line, if something does not fit.
"""

import importlib
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import app, flags

from benchmarks import resumable
from big_ssl import command_line
from big_ssl.config import validate


class Variant(NamedTuple):
    """recipe: a module in configs; preset: the suffix after demo or tiny; weights, options: {objective: its
    weight}, {objective: its options} that differ from the recipe's."""

    recipe: str
    preset: str = ""
    weights: Mapping[str, float] = {}
    options: Mapping[str, Mapping] = {}


TABLES: dict[str, dict[str, Variant]] = {
    "ibot": {
        "DINO and masked patches": Variant("ibot"),
        "DINO alone": Variant("ibot", weights=dict(ibot=0.0)),
        "masked patches alone": Variant("ibot", weights=dict(dino=0.0)),
    },
    "dinov2": {
        "iBOT and KoLeo": Variant("ibot"),
        "DINOv2": Variant("dinov2"),
        "DINOv2 without KoLeo": Variant("dinov2", weights=dict(koleo=0.0)),
    },
    "hybrid": {
        "contrastive": Variant("hybrid_clip_dinov2", "_contrastive"),
        "self-supervised": Variant("hybrid_clip_dinov2", "_self_supervised"),
        "both": Variant("hybrid_clip_dinov2"),
    },
    "unicl": {
        "UniCL": Variant("unicl"),
        "CLIP loss": Variant("unicl", options=dict(unicl=dict(positives=""))),
    },
}
# The columns: the metrics of a run whose keys end so.
_METRICS = (
    "k20_top1",
    "pixel_k20_top1",
    "twemoji_heads/top1",
    "zero_shot/twemoji/top1",
    "zero_shot/twemoji_unseen/top1",
    "image_to_text_r1",
    "image_to_text_r10",
    "koleo_distance",
)
_TABLE = flags.DEFINE_enum("table", None, list(TABLES), "What to compare.")
_PRESET = flags.DEFINE_string("preset", "demo", "demo or tiny.")
_STEPS = flags.DEFINE_integer("steps", 400, "Training steps of each run.", 1)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of each variant.")


def run_config(variant: Variant, seed: int, steps: int) -> dict:
    """The config of one run; with 0 steps, of a run whose learning rate is 0."""
    module = importlib.import_module(f"configs.{variant.recipe}")
    config = module.get_config(f"{_PRESET.value}{variant.preset}").to_dict()
    config.update(seed=seed, total_steps=max(1, steps), eval_every=max(1, steps))
    config["checkpoint"].update(every=max(1, steps), keep=1, best="")
    rate = config["learning_rate"]
    rate.update(warmup_steps=min(rate["warmup_steps"], steps // 4))
    if not steps:
        rate.update(peak=0.0, final=0.0, start=0.0)
    (stream,) = config["streams"].values()
    for name, weight in variant.weights.items():
        if name in stream["objectives"]:  # the smallest preset of iBOT has no KoLeo
            stream["objectives"][name]["weight"] = weight
    for name, options in variant.options.items():
        stream["objectives"][name].update(options)
    validate(config)
    return config


def columns(metrics: Mapping[str, float]) -> dict[str, float]:
    """A run's metrics that the table shows."""
    ends = tuple(f"/{end}" for end in _METRICS)
    return {key.split("/", 1)[1]: value for key, value in metrics.items() if key.endswith(ends)}


def train_all(folder: pathlib.Path) -> dict[str, list[dict]]:
    """{variant: the columns of each seed}; folder: of the results and the runs."""
    variants = TABLES[_TABLE.value]
    runs = {"untrained": (next(reversed(variants.values())), 0)}
    runs |= {name: (variant, _STEPS.value) for name, variant in variants.items()}
    results: dict[str, list[dict]] = {}
    for name, (variant, steps) in runs.items():
        for seed in map(int, _SEEDS.value):
            print(f"{name}, seed {seed}", file=sys.stderr)
            config = run_config(variant, seed, steps)
            workdir = folder / f"{name.replace(' ', '_')}_seed{seed}"
            results.setdefault(name, []).append(columns(resumable.result(config, workdir)))
            write(folder, results)
    return results


def write(folder: pathlib.Path, results: Mapping) -> None:
    """Writes results.json and table.md of the finished runs."""
    settings = dict(table=_TABLE.value, preset=_PRESET.value, steps=_STEPS.value, results=results)
    (folder / "results.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "table.md").write_text(table(results))


def table(results: Mapping[str, list[dict]]) -> str:
    """Markdown: a row for each variant, means over the seeds with their range."""
    names = list(dict.fromkeys(key for runs in results.values() for run in runs for key in run))
    lines = [["", *names], ["---"] * (1 + len(names))]
    for variant, runs in results.items():
        lines.append([variant, *(_cell([run[name] for run in runs if name in run], name) for name in names)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(values, name):
    if not values:
        return ""
    show = (lambda x: f"{x:.3f}") if name.endswith("distance") else (lambda x: f"{x:.1%}")
    spread = f" ({show(min(values))} to {show(max(values))})" if len(values) > 1 else ""
    return show(np.mean(values)) + spread


def main(_) -> None:
    resumable.main(lambda folder: print(table(train_all(folder))))


if __name__ == "__main__":
    flags.mark_flags_as_required(["output", "table"])
    app.run(main, flags_parser=command_line.parse_flags)
