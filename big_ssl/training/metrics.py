"""Where the numbers of a run go: metrics.jsonl and TensorBoard events."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping

import jax

from big_ssl import io
from big_ssl.training.progress import console
from big_ssl.training.tensorboard import EventFile
from big_ssl.training.wall_time import earlier_seconds


class MetricsWriter:
    """Adds scalars to workdir/metrics.jsonl, one object a line, and to TensorBoard events.

    A resumed run first drops the lines after `start_step`, so that the file reads like that of a run never
    stopped; `seconds_before` is where the time of all that there were went, see wall_time. One that starts
    at 0 first copies them to metrics_1.jsonl, or the next number that is free. Only process 0 writes. NaN
    and infinities are written as null.
    """

    def __init__(self, workdir, start_step: int = 0):
        self._active = jax.process_index() == 0
        self.seconds_before: dict[str, float] = {}
        self._path = path = io.as_path(workdir) / "metrics.jsonl"
        if not self._active:
            return
        if not start_step and next(_whole_lines(path), None):
            _set_aside(path)
        self.seconds_before = earlier_seconds(_whole_lines(path), start_step)
        _drop_after(path, start_step)
        self._lines, self._events = io.GrowingFile(path), EventFile(workdir, start_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line. On disk when this returns; in a bucket within a minute, see io.GrowingFile."""
        if not self._active:
            return
        values = {key: float(value) for key, value in metrics.items()}
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(f"{json.dumps(line)}\n".encode())
        self._events.write(step, values)

    def flush(self) -> None:
        """Sends what waits: before each checkpoint, so that a run which resumes from it lacks no line."""
        if self._active:
            self._lines.flush()
            self._events.flush()

    close = flush

    def lines(self) -> Iterator[dict]:
        """The lines that there are; none on processes other than 0."""
        return _whole_lines(self._path) if self._active else iter(())


def read_lines(path) -> list[dict]:
    """The lines of a metrics.jsonl, none where there is no file; one cut short by a kill is left out."""
    return list(_whole_lines(path))


def _whole_lines(path) -> Iterator[dict]:
    return (line for _, line in _raw_lines(path) if line)


def _set_aside(path):
    """Keeps the metrics of an earlier run whose checkpoints are gone, or that never saved."""
    taken = (path.with_name(f"metrics_{n}.jsonl") for n in itertools.count(1))
    aside = next(path for path in taken if not path.exists())
    path.copy(aside)
    console.print(f"no checkpoint: starting at step 0; the metrics of the run before are in {aside.name}")


def _raw_lines(path):
    """Yields (bytes, dict) of each line, None for the dict of one cut short."""
    path = io.as_path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            try:
                yield text, json.loads(text)
            except ValueError:
                yield text, None


def _drop_after(path, step):
    """Rewrites the file without the lines after step and those cut short, where there are any."""
    stays = lambda text, line: line is not None and line["step"] <= step and text.endswith(b"\n")  # noqa: E731
    if all(stays(*each) for each in _raw_lines(path)):
        return
    io.write_atomically(path, b"".join(text for text, line in _raw_lines(path) if stays(text, line)))
