"""Checks what a rehearsal has made; launch/rehearse.sh calls it.

python launch/rehearsal_check.py RUN OTHER     whether two runs ended as the same, to the last bit
python launch/rehearsal_check.py FOLDER        whether big_ssl.load reads it and embeds pictures
"""

import sys

import jax
import numpy as np

import big_ssl
from big_ssl import io
from big_ssl.training import trained
from big_ssl.training.metrics import read_lines


def compare(run: str, other: str) -> str:
    """A line about two runs that are equal. Raises ValueError where they are not."""
    losses = [_losses(path) for path in (run, other)]
    if losses[0] != losses[1]:
        raise ValueError(f"the losses differ: {losses[0]} and {losses[1]}")
    steps = [step for step, _ in losses[0]]
    if steps != list(range(1, len(steps) + 1)):
        raise ValueError(f"metrics.jsonl has the steps {steps}")
    arrays, expected = (jax.tree_util.tree_leaves_with_path(trained.load(path)[1]) for path in (run, other))
    for (path, a), (_, b) in zip(arrays, expected, strict=True):
        if not np.array_equal(a, b):
            raise ValueError(f"{jax.tree_util.keystr(path)} differs")
    report = io.as_path(run) / "report" / "index.html"
    if "</html>" not in report.read_text():
        raise ValueError(f"{report} is cut short")
    return f"{len(steps)} losses and {len(arrays)} arrays are equal to the last bit"


def embed(folder: str) -> str:
    """A line about a model that embeds pictures."""
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
    vectors = big_ssl.load(folder).encode_image(images)
    if not np.isfinite(vectors).all():
        raise ValueError(f"{folder} gives vectors that are not finite")
    return f"{folder}: 2 pictures are {vectors.dtype}{list(vectors.shape)}"


def _losses(workdir):
    lines = read_lines(io.as_path(workdir) / "metrics.jsonl")
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


if __name__ == "__main__":
    try:
        print(compare(*sys.argv[1:]) if len(sys.argv) == 3 else embed(*sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
