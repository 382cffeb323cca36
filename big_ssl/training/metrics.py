"""Writes a run's metrics: metrics.jsonl and TensorBoard events."""

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
    """Appends scalars to workdir/metrics.jsonl, one object per line, and to TensorBoard events.

    A resumed run first drops the lines after `start_step`, so that the file equals that of an uninterrupted
    run; `seconds_before` has the wall time of all earlier segments, see wall_time. A run that starts at 0
    first copies existing lines to metrics_1.jsonl, or the next free number. Only process 0 writes. NaN and
    infinities are written as null.
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
        """Writes one line: at once on a disk, within a minute to a bucket, see io.GrowingFile."""
        if not self._active:
            return
        values = {key: float(value) for key, value in metrics.items()}
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(f"{json.dumps(line)}\n".encode())
        self._events.write(step, values)

    def flush(self) -> None:
        """Sends buffered lines. Called before each checkpoint, so that a resumed run has all lines."""
        if self._active:
            self._lines.flush()
            self._events.flush()

    close = flush

    def lines(self) -> Iterator[dict]:
        """The lines so far; none on processes other than 0."""
        return _whole_lines(self._path) if self._active else iter(())


def read_lines(path) -> list[dict]:
    """The lines of a metrics.jsonl, [] without a file; omits a line truncated by a kill."""
    return list(_whole_lines(path))


def _whole_lines(path) -> Iterator[dict]:
    return (line for _, line in _raw_lines(path) if line)


def _set_aside(path):
    """Keeps the metrics of an earlier run whose checkpoints are gone, or that never saved."""
    names = (path.with_name(f"metrics_{n}.jsonl") for n in itertools.count(1))
    free = next(path for path in names if not path.exists())
    path.copy(free)
    console.print(f"no checkpoint: starting at step 0; the earlier run's metrics are in {free.name}")


def _raw_lines(path):
    """Yields (bytes, dict) of each line; the dict of a truncated line is None."""
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
    """Rewrites the file without truncated lines and lines after step, if there are any."""
    keep = lambda text, line: line is not None and line["step"] <= step and text.endswith(b"\n")  # noqa: E731
    if all(keep(text, line) for text, line in _raw_lines(path)):
        return
    io.write_atomically(path, b"".join(text for text, line in _raw_lines(path) if keep(text, line)))
