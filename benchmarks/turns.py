"""Our step and a peer's in turn, each in a process of its own: a slow spell of the machine meets both.

Seconds of all cores are told beside seconds of the clock, since only they stay comparable where others use
the machine.
"""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np


def clocks() -> np.ndarray:
    """float64[2]: seconds by the clock, and of all cores of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(function):
    """(float64[2] as `clocks`, what function() gives)."""
    began = clocks()
    value = function()
    return clocks() - began, value


@contextlib.contextmanager
def peer(serve: Callable, *arguments):
    """A process that runs serve(connection, *arguments), as a function of a task's name; see `answer`."""
    # Waiting threads that spin would count as work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()  # so that its end is seen here, should it fail

    def ask(task):
        here.send(task)
        return here.recv()

    here.recv()
    yield ask
    here.send(None)
    process.join()


def answer(connection, tasks: Mapping[str, Callable]) -> None:
    """A peer's part: says that it is ready, then does each task whose name it is sent, and sends back what
    `timed` gives of it, until None comes."""
    connection.send("ready")
    while (task := connection.recv()) is not None:
        connection.send(timed(tasks[task]))


def compare(own: Mapping[str, Callable], ask: Callable, count: int, flops: int, product_flops: int) -> dict:
    """Times `count` steps of each, prints the figures and returns them.

    own: "step" and "product", a lone product of two matrices that takes product_flops; ask: of `peer`, for
    the same two; flops: of a step's matrix products. Exits where the first losses do not agree.
    """
    tasks = {
        name: dict(ours=lambda task=task: timed(task), theirs=lambda name=name: ask(name))
        for name, task in own.items()
    }
    _check_losses({name: task()[1] for name, task in tasks["step"].items()})
    times = _take(tasks["step"], count)
    seconds = {name: taken[:, 1].min() for name, taken in _take(tasks["product"], 20).items()}
    return _report(times, {name: product_flops / taken for name, taken in seconds.items()}, flops)


def _take(tasks, count):
    """{name: float64[count, 2]}, as `clocks`."""
    times = {name: [] for name in tasks}
    for _ in range(count):
        for name, task in tasks.items():
            times[name].append(task()[0])
    return {name: np.array(taken) for name, taken in times.items()}


def _report(times, rates, count) -> dict:
    found = dict(flops=count)
    print(f"{count / 1e9:.0f} GFLOP a step in matrix products")
    for name, taken in times.items():
        clock, cores = np.median(taken, 0)
        share = count / rates[name] / cores
        found[name] = dict(seconds=taken.tolist(), product_rate=rates[name], share=share)
        print(
            f"{name:>6}: {_spread(taken[:, 0])} s by the clock, {count / clock / 1e9:.0f} GFLOP/s; "
            f"{_spread(taken[:, 1])} s of cores, {count / cores / 1e9:.0f} GFLOP a second of each; a lone "
            f"product {rates[name] / 1e9:.0f}, at which the products are {share:.0%} of the step"
        )
    ratios = times["theirs"] / times["ours"]
    for column, what in enumerate(("by the clock", "of cores")):
        found[f"ratios {what}"] = ratios[:, column].tolist()
        print(f"theirs / ours, {what}: {_spread(ratios[:, column])}")
    return found


def _spread(values):
    return f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"


def _check_losses(losses) -> None:
    print(f"first losses: {losses}")
    if abs(losses["ours"] - losses["theirs"]) > 1e-3:
        sys.exit("the first losses differ: this would compare two different models")
