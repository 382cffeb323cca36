"""Terminal output: a table of parameters at the start, then a progress bar or lines."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table

from big_ssl import io
from big_ssl.parallel.sharding import bytes_per_device, path_name

console = rich.console.Console(highlight=False, soft_wrap=True)


# Rows of the summary: with its frame and the total it fits a terminal of 25 lines.
_ROWS = 18


class _Parameter(NamedTuple):
    """device_bytes: bytes per device; split: the mesh axes that shard it, "" for none."""

    name: str
    leaf: Any
    device_bytes: int
    split: str


def print_parameters(params, shardings, workdir) -> None:
    """Prints a summary by module; writes all parameters to workdir/parameters.txt. Only on process 0.

    Args:
      params: pytree of arrays or ShapeDtypeStructs.
      shardings: pytree of NamedShardings.
      workdir: the run's.
    """
    if jax.process_index() != 0:
        return
    leaves = jax.tree_util.tree_leaves_with_path(params)
    parameters = [
        _Parameter(path_name(path), leaf, bytes_per_device(leaf, sharding), _split(sharding))
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
    ]
    table = rich.table.Table(title="Parameters")
    table.add_column("module", overflow="ellipsis", no_wrap=True)
    for name in ("parameters", "MiB a device", "split over"):
        table.add_column(name, justify="right", no_wrap=True)
    for module, members in _modules(parameters).items():
        axes = sorted({parameter.split for parameter in members} - {""})
        table.add_row(module, f"{_count(members):,}", f"{_mib(members):.1f}", ", ".join(axes) or "nothing")
    console.print(table)
    file = io.as_path(workdir) / "parameters.txt"
    io.write_atomically(file, "".join(f"{line}\n" for line in _listed(parameters)).encode())
    console.print(
        f"{_count(parameters):,} parameters, {_mib(parameters):.1f} MiB a device; each of them: {file}"
    )


def _split(sharding):
    return " x ".join(axis for axis in sharding.spec if axis)


def _modules(parameters):
    """{module: its parameters}, with modules at the greatest depth that fits the rows."""
    for depth in range(4, 0, -1):
        modules: dict[str, list[_Parameter]] = {}
        for parameter in parameters:
            parts = parameter.name.split("/")
            modules.setdefault("/".join(parts[: max(1, min(depth, len(parts) - 1))]), []).append(parameter)
        if len(modules) <= _ROWS:
            break
    return modules


def _count(parameters):
    return sum(parameter.leaf.size for parameter in parameters)


def _mib(parameters):
    return sum(parameter.device_bytes for parameter in parameters) / 2**20


def _listed(parameters):
    """Yields one line per parameter, in aligned columns."""
    rows = [("parameter", "shape", "dtype", "split over", "MiB a device")]
    for name, leaf, device_bytes, split in parameters:
        mib = f"{device_bytes / 2**20:.3f}"
        rows.append((name, str(leaf.shape), str(leaf.dtype), split or "nothing", mib))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


class Progress:
    """Progress of a run: a live bar on a terminal, otherwise a line per report."""

    def __init__(self, start: int, total: int, examples_per_step: int):
        self._total, self._examples = total, examples_per_step
        self._first, self._paused = start, 0.0
        self._began: float | None = None
        live = console.is_terminal and jax.process_index() == 0
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            console=console,
            disable=not live,
        )
        self._task = self._bar.add_task("training", total=total, completed=start, text="compiling")
        self._bar.start()

    def step(self, step: int) -> None:
        """Updates the bar to `step` completed steps."""
        if self._began is None:  # the first step compiles, and would distort the average speed
            self._began, self._first = time.monotonic(), step
        self._bar.update(
            self._task, completed=step, text=f"{self.rate(step):.0f} examples/s, ETA {self.eta(step)}"
        )

    def report(self, step: int, text: str) -> None:
        """Prints a line about a step: text, such as the loss, with speed and time left."""
        if jax.process_index() == 0:
            speed = f"{self.rate(step):.0f} examples/s  ETA {self.eta(step)}"
            console.print(f"step {step:>6}/{self._total}  {text}  {speed}")

    def pause(self, seconds: float) -> None:
        """Excludes time spent outside steps from the speed."""
        self._paused += seconds

    def rate(self, step: int) -> float:
        """Examples per second since the first step, without pauses and compilation."""
        if self._began is None or step == self._first:
            return 0.0
        elapsed = max(time.monotonic() - self._began - self._paused, 1e-9)
        return (step - self._first) * self._examples / elapsed

    def eta(self, step: int) -> str:
        """Time left at this rate, h:mm:ss, without future evaluations."""
        rate = self.rate(step)
        if not rate:
            return "?"
        seconds = int(np.ceil((self._total - step) * self._examples / rate))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def close(self) -> None:
        """Removes the bar from the terminal."""
        self._bar.stop()
