"""The runs of benchmarks/noise_vs_scale.py: their configs, their results, and what is drawn of them."""

import copy
import pathlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from big_ssl.config import validate
from big_ssl.data import sources, tokenizers
from big_ssl.data.records import IMAGE, values
from big_ssl.evals import plots
from configs import emoji

# Quarters of all pictures.
SIZES = (1, 2, 4)
# What is drawn, by its key in metrics.jsonl, and with what chance gives.
METRICS = {
    "eval/zero_shot/twemoji/top1": "unseen style: top-1 of all names",
    "eval/retrieval/twemoji_unseen/image_to_text_r1": "unseen concepts: picture to name R@1",
    "eval/retrieval/twemoji_unseen/image_to_text_r10": "unseen concepts: picture to name R@10",
}
_CHANCE = {metric: metric.replace("top1", "chance").replace("image_to_text", "chance") for metric in METRICS}


class Run(NamedTuple):
    """text: "clean" or "noisy"; size: one of SIZES."""

    text: str
    size: int
    seed: int

    @property
    def name(self):
        return f"{self.text}_{self.size}x_seed{self.seed}"


class Data(NamedTuple):
    """source: all the pictures, as config.streams.pairs.data.source; kinds: {text: the kind of text of a
    record}; tokenizer: config.tokenizer."""

    source: Mapping
    kinds: Mapping[str, str]
    tokenizer: Mapping


def part(source: Mapping, size: int) -> dict:
    """The source of the part of this size: the smaller parts lie in the larger."""
    share = size / max(SIZES)
    if source["kind"] == "tfds":
        return dict(source, split=f"{source['split']}[:{share:.0%}]")
    return dict(source, share=share)


def vocabulary(path: pathlib.Path, source: Mapping, kinds: Mapping[str, str], size: int) -> int:
    """Trains one WordPiece vocabulary for all runs, on both texts of all pictures, if there is none at
    path yet. Returns its number of words. Raises ValueError for a kind of text that no record has."""
    if not path.exists():
        records = list(sources.records(sources.build(source)))
        for kind in kinds.values():
            if not any(values(record, kind) for record in records):
                known = ", ".join(key for key in records[0] if key != IMAGE)
                raise ValueError(f"no record has a text of the kind {kind!r}; there are {known}")
        texts = (text for record in records for kind in kinds.values() for text in values(record, kind))
        words = tokenizers.train_wordpiece((text for text in texts if isinstance(text, str)), size)
        path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return len(path.read_text(encoding="utf-8").splitlines())


def run_config(base: Mapping, run: Run, data: Data, steps: int) -> dict:
    """One run: of a recipe, another source and text. Raises config.ConfigError where they do not fit."""
    config = copy.deepcopy(dict(base))
    config.update(name=run.name, seed=run.seed, total_steps=steps, eval_every=steps, tokenizer=data.tokenizer)
    config["checkpoint"].update(every=steps, best="")
    config["evals"] = emoji.evals(styles=("twemoji",), training_styles=())  # no more than is told
    rate = config["learning_rate"]
    rate.update(warmup_steps=min(rate["warmup_steps"], steps // 4))
    stream = config["streams"]["pairs"]["data"]
    stream.update(source=part(data.source, run.size))
    stream["fields"]["text"].update(captions={data.kinds[run.text]: 1.0})
    validate(config)
    return config


def by_size(
    results: Mapping[Run, Mapping[str, float]], text: str, metric: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (size, float[S]: what each seed gave) in order of size."""
    for size in SIZES:
        found = [value[metric] for run, value in results.items() if (run.text, run.size) == (text, size)]
        if found:
            yield size, np.array(found)


def plot(results: Mapping[Run, Mapping[str, float]], title: str) -> Figure:
    """For each metric a curve over the size of the data for clean and noisy text, means over the seeds."""
    figure = Figure(figsize=(3.9 * len(METRICS), 3.2), layout="constrained", facecolor="white")
    figure.suptitle(textwrap.fill(title, 150), fontsize=9, color=plots.MUTED, x=0.01, ha="left")
    for place, (metric, name) in zip(figure.subfigures(1, len(METRICS)), METRICS.items(), strict=True):
        lines = []
        for text, colour in zip(("clean", "noisy"), plots.COLOURS, strict=False):
            points = [(size, found.mean()) for size, found in by_size(results, text, metric)]
            lines += [plots.Line(f"{text} text", points, colour)] if points else []
        chance = next(iter(results.values()))[_CHANCE[metric]]
        over = "pictures, times the smallest set"
        plots.draw_curves(place, name, lines, dict(chance=chance), percent=True, over=over)
    return figure
