"""Where the numbers of a run go: metrics.jsonl and TensorBoard events."""

import itertools
import json
import math
from collections.abc import Mapping

import jax
from etils import epath
from tensorboardX import SummaryWriter

from big_ssl.training.progress import console


class MetricsWriter:
    """Appends scalars to workdir/metrics.jsonl, one object a line, and to TensorBoard events.

    A resumed run first drops the lines after `start_step`, so that the file reads like that of
    a run never stopped; `found` keeps all that there were. One that starts at 0 first copies them to
    metrics_1.jsonl, or the next number that is free. Only process 0 writes. NaN and infinities are
    written as null.
    """

    def __init__(self, workdir, start_step: int = 0):
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._active = jax.process_index() == 0
        self.found = read_lines(self._path) if self._active else []
        if self._active and self.found and not start_step:
            self._set_aside()
        if self._active:
            self._drop_after(start_step)
            self._events = SummaryWriter(str(workdir), purge_step=start_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line, on disk when this returns."""
        if not self._active:
            return
        values = {key: float(value) for key, value in metrics.items()}
        line = {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in values.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        """Flushes the events."""
        if self._active:
            self._events.close()

    def _set_aside(self):
        """Keeps the metrics of an earlier run whose checkpoints are gone, or that never saved."""
        taken = (self._path.with_name(f"metrics_{n}.jsonl") for n in itertools.count(1))
        aside = next(path for path in taken if not path.exists())
        self._path.copy(aside)
        console.print(f"no checkpoint: starting at step 0; the metrics of the run before are in {aside.name}")

    def _drop_after(self, step):
        kept = [line for line in self.found if line["step"] <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)


def read_lines(path) -> list[dict]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    path = epath.Path(path)
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
