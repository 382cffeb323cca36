"""Does noisy text catch up with clean text as the data grows? A small ALIGN on 1x, 2x and 4x the pictures.

    python -m benchmarks.noise_vs_scale --output=DIR [--steps=325] [--seeds=0,1]
    python -m benchmarks.noise_vs_scale --output=DIR --source.kind=parquet --source.path=FILE \
        --clean=title --noisy=alt

That it does is what ALIGN is about: the scale of noisy data makes up for its noise (arXiv 2102.05918). Here
the demo's towers are trained from scratch, six times, with equal steps and batches; the sizes are parts of
each other, and 4x is all. Without --source they are the emoji drawings, each with one text, the same at
every visit: clean is the concept's name, and noisy the tags alone, or the name or the tags in one of ten
other languages, a third each. All runs share one vocabulary, trained on both texts. What is asked is the
drawings of an unseen style, by name, and those of unseen concepts among themselves.

DIR gets results.json, curves.png, and a folder for each run; the same command again goes on after the runs
that are there. To see in a few minutes that all works: --preset=tiny --steps=5.
Exit code 2, and one line, where something does not fit.
"""

import json
import pathlib
import sys

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.table import Table

from benchmarks import noise_runs, resumable
from big_ssl import command_line
from big_ssl.config import validate_source
from big_ssl.data import emoji_drawings
from configs import align_l2

_PRESET = flags.DEFINE_string("preset", "demo", "Of configs/align_l2.py; changes may follow: demo,dtype=...")
_STEPS = flags.DEFINE_integer("steps", 325, "Training steps of each run.", 1)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Each makes six runs more.")
# "": not given, for the source's own default.
_UNSAID = dict(kind="", path="", name="", split="", data_dir="", image_key="")
_SOURCE = config_flags.DEFINE_config_dict("source", ConfigDict(_UNSAID), "Other pictures than the emoji.")
_CLEAN = flags.DEFINE_string("clean", "label", "The kind of text, or the column, that is clean.")
_NOISY = flags.DEFINE_string("noisy", "noisy", "The kind of text, or the column, that is noisy.")


def read_data(base: dict, folder: pathlib.Path) -> noise_runs.Data:
    """What the flags say of pictures and texts. Raises ConfigError, OSError and ValueError."""
    kinds = dict(clean=_CLEAN.value, noisy=_NOISY.value)
    source = {key: value for key, value in _SOURCE.value.items() if value}
    if source:
        source["text_keys"] = tuple(dict.fromkeys(kinds.values()))
    else:
        emoji = base["streams"]["pairs"]["data"]["source"]
        source = dict(emoji, languages=tuple(emoji_drawings.emoji_languages()))
    validate_source(noise_runs.part(source, 1), "source")
    path = folder / "wordpiece.txt"
    size = noise_runs.vocabulary(path, source, kinds, base["tokenizer"]["size"])
    tokenizer = dict(base["tokenizer"], kind="wordpiece", vocabulary=str(path), size=size)
    return noise_runs.Data(source, kinds, tokenizer)


def train_all(folder: pathlib.Path) -> dict:
    """{run: its metrics}; folder: where everything is kept."""
    base = align_l2.get_config(_PRESET.value).to_dict()
    data = read_data(base, folder)
    runs = [
        noise_runs.Run(text, size, int(seed))
        for seed in _SEEDS.value
        for size in noise_runs.SIZES
        for text in data.kinds
    ]
    configs = {run: noise_runs.run_config(base, run, data, _STEPS.value) for run in runs}
    results = {}
    for i, (run, config) in enumerate(configs.items(), 1):
        print(f"run {i} of {len(runs)}: {run.name}", file=sys.stderr)
        results[run] = resumable.result(config, folder / run.name)
        write(folder, results, data)
    return results


def write(folder: pathlib.Path, results: dict, data: noise_runs.Data) -> None:
    """results.json and curves.png, of what is finished."""
    rows = [dict(run._asdict(), metrics=found) for run, found in results.items()]
    settings = dict(preset=_PRESET.value, steps=_STEPS.value, source=data.source, kinds=data.kinds)
    (folder / "results.json").write_text(json.dumps(settings | dict(runs=rows), indent=2) + "\n")
    title = f"{_STEPS.value:,} steps each, {len({run.seed for run in results})} seed(s); {_PRESET.value}"
    noise_runs.plot(results, title).savefig(folder / "curves.png", dpi=160)


def print_table(results: dict) -> None:
    """Means over the seeds with their range, and the noisy text at 4x against the clean."""
    table = Table("metric", "text", *(f"{size}x" for size in noise_runs.SIZES))
    for metric, name in noise_runs.METRICS.items():
        for text in ("clean", "noisy"):
            cells = [_cell(found) for _, found in noise_runs.by_size(results, text, metric)]
            table.add_row(name, text, *cells)
    Console().print(table)
    for metric, name in noise_runs.METRICS.items():
        clean, noisy = (
            {size: found.mean() for size, found in noise_runs.by_size(results, text, metric)}
            for text in ("clean", "noisy")
        )
        most = max(noise_runs.SIZES)
        ratios = (noisy[most] / max(clean[size], 1e-9) for size in noise_runs.SIZES)
        told = ", ".join(f"{r:.2f} of clean at {s}x" for r, s in zip(ratios, noise_runs.SIZES, strict=True))
        print(f"{name}: noisy at {most}x is {told}")


def _cell(found):
    spread = f" ({found.min():.1%} to {found.max():.1%})" if len(found) > 1 else ""
    return f"{np.mean(found):.1%}{spread}"


def main(_) -> None:
    resumable.main(lambda folder: print_table(train_all(folder)))


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    app.run(main, flags_parser=command_line.parse_flags)
