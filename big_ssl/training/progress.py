"""What a person at the terminal sees: tables at the start, a bar or lines while it runs."""

import time

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table

from big_ssl.parallel.sharding import bytes_per_device, path_name

console = rich.console.Console(highlight=False, soft_wrap=True)


def print_parameters(params, shardings) -> None:
    """A table of every parameter: path, shape, dtype, partition, MiB a device; then the sum."""
    table = rich.table.Table(title="Parameters")
    table.add_column("parameter", overflow="fold")  # whole, however narrow the terminal
    for name in ("shape", "dtype", "partition", "MiB/device"):
        table.add_column(name)
    total = size = 0
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        held = bytes_per_device(leaf, sharding)
        total, size = total + held, size + leaf.size
        partition = str(tuple(sharding.spec)) if any(sharding.spec) else "whole"
        table.add_row(path_name(path), str(leaf.shape), str(leaf.dtype), partition, f"{held / 2**20:.3f}")
    if jax.process_index() == 0:
        console.print(table)
        console.print(f"{size:,} parameters, {total / 2**20:.1f} MiB a device")


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
