"""What a person at the terminal sees: tables at the start, a bar or lines while it runs."""

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


# Of the summary on the screen: with its frame and the sum it fits a terminal of 25 lines.
_ROWS = 18


class _Parameter(NamedTuple):
    """held: bytes on a device; split: over which axes, "" for none."""

    name: str
    leaf: Any
    held: int
    split: str


def print_parameters(params, shardings, workdir) -> None:
    """A summary by module on the screen; every parameter with its shape, dtype and partition in
    workdir/parameters.txt. Does nothing but on process 0."""
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
    for module, inside in _modules(parameters).items():
        axes = sorted({parameter.split for parameter in inside} - {""})
        table.add_row(module, f"{_count(inside):,}", f"{_mib(inside):.1f}", ", ".join(axes) or "nothing")
    console.print(table)
    file = io.as_path(workdir) / "parameters.txt"
    io.write_atomically(file, "".join(f"{line}\n" for line in _listed(parameters)).encode())
    console.print(
        f"{_count(parameters):,} parameters, {_mib(parameters):.1f} MiB a device; each of them: {file}"
    )


def _split(sharding):
    return " x ".join(axis for axis in sharding.spec if axis)


def _modules(parameters):
    """{module: its parameters}, of modules as deep in the tree as there are rows for."""
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
    return sum(parameter.held for parameter in parameters) / 2**20


def _listed(parameters):
    """Yields a line for each parameter, in columns."""
    rows = [("parameter", "shape", "dtype", "split over", "MiB a device")]
    for name, leaf, held, split in parameters:
        rows.append((name, str(leaf.shape), str(leaf.dtype), split or "nothing", f"{held / 2**20:.3f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


class Progress:
    """Progress of a run: a live bar on a terminal, a line at each report elsewhere."""

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
        """Says that `step` steps are done."""
        if self._began is None:  # the first step compiles, and would spoil every average
            self._began, self._first = time.monotonic(), step
        self._bar.update(
            self._task, completed=step, text=f"{self.rate(step):.0f} examples/s, ETA {self.eta(step)}"
        )

    def report(self, step: int, text: str) -> None:
        """Prints a line about the step: loss and the like, speed, time left."""
        if jax.process_index() == 0:
            speed = f"{self.rate(step):.0f} examples/s  ETA {self.eta(step)}"
            console.print(f"step {step:>6}/{self._total}  {text}  {speed}")

    def pause(self, seconds: float) -> None:
        """Leaves time spent on something other than steps out of the speed."""
        self._paused += seconds

    def rate(self, step: int) -> float:
        """Examples per second since the first step, pauses and compilation left out."""
        if self._began is None or step == self._first:
            return 0.0
        elapsed = max(time.monotonic() - self._began - self._paused, 1e-9)
        return (step - self._first) * self._examples / elapsed

    def eta(self, step: int) -> str:
        """Time left at this rate, h:mm:ss; evaluations still to come are not in it."""
        rate = self.rate(step)
        if not rate:
            return "?"
        seconds = int(np.ceil((self._total - step) * self._examples / rate))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def close(self) -> None:
        """Takes the bar off the terminal."""
        self._bar.stop()
