"""A training step, compiled for devices that aren't there."""

import pathlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh

from big_ssl.parallel.mesh import AXES
from big_ssl.parallel.sharding import bytes_per_device, state_shardings


class Tensor(NamedTuple):
    """An array that a device holds while it runs a step. source: the operation that makes it."""

    size: int
    shape: str
    source: str


class Program(NamedTuple):
    """A compiled step. Bytes are one device's.

    text: the optimised HLO, or "" where the compiler gave up before it had one.
    arguments: the state and the batch; temporaries: all else that it needs besides them and the
    outputs that take their place; peak: the two, the program and outputs of its own.
    largest: the three largest tensors, of a step that does not fit only.
    seconds: of tracing and compiling.
    """

    text: str
    arguments: int
    temporaries: int
    peak: int
    fits: bool
    largest: tuple[Tensor, ...]
    seconds: float


def compile_step(setup, batch) -> Program:
    """Compiles setup.step for the devices of setup.mesh. batch: abstract, with shardings."""
    began = time.monotonic()
    lowered = setup.step.lower(setup.abstract_state, batch)
    with tempfile.TemporaryDirectory() as folder:
        try:
            # Told to, the compiler leaves its program and buffers behind even where they don't fit.
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            if "CompileTimeHbmOom" not in str(error):
                raise
            arguments = argument_bytes((setup.abstract_state, batch))
            return _too_large(str(error), pathlib.Path(folder), arguments, time.monotonic() - began)
        # Not compiled.as_text(): it goes through jaxlib's own reader, and the TPU compiler, being
        # newer, writes operations that it can't read.
        text = _dumped(pathlib.Path(folder), "after_codegen.txt")
    memory = compiled.memory_analysis()
    own_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = arguments + temporaries + own_outputs + memory.generated_code_size_in_bytes
    return Program(text, arguments, temporaries, peak, True, (), time.monotonic() - began)


def argument_bytes(arguments) -> int:
    """Bytes a device holds of abstract arrays with shardings, before the compiler pads them."""
    return sum(bytes_per_device(leaf, leaf.sharding) for leaf in jax.tree.leaves(arguments))


def state_bytes(abstract_state, sizes: Mapping[str, int], overrides: Sequence = ()) -> int | None:
    """Bytes a device holds of the state on a mesh of these sizes; compiles nothing.

    overrides: config.sharding. None where the state can't be split so.
    """
    mesh = AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES)
    try:
        placed = state_shardings(mesh, abstract_state, overrides)
    except ValueError:
        return None
    return sum(jax.tree.leaves(jax.tree.map(bytes_per_device, abstract_state, placed)))


def _too_large(message, folder, arguments, seconds):
    text = _dumped(folder, "after_optimizations.txt")
    largest = _largest(_dumped(folder, "after_optimizations-buffer-assignment.txt"), text)
    required = _required(message)
    return Program(text, arguments, max(required - arguments, 0), required, False, largest, seconds)


def _required(message):
    """The bytes that an out-of-memory message says the program needs."""
    number, unit = re.search(r"\(([\d.]+)([KMGT])\) exceeds", message).groups()
    return int(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))


def _dumped(folder, ending):
    """The dumped file of the step itself: the largest, where small helpers were compiled with it."""
    found = sorted(folder.glob(f"*.{ending}"), key=lambda path: path.stat().st_size)
    return found[-1].read_text() if found else ""


def _largest(assignment, text, count=3):
    """The largest buffers in HBM, each with the largest value that it holds."""
    pattern = re.compile(
        r"^ value: <\d+ (\S+?)(?:\{[\d,]*\})? @0> \(size=(\d+),offset=(\d+)\): (\w+\[[\d,]*\])"
    )
    values: dict[tuple, tuple] = {}
    allocation = ""
    for line in assignment.splitlines():
        if line.startswith("allocation "):
            allocation = line
        elif match := pattern.match(line):
            place, value = (allocation, match[3]), (int(match[2]), match[4], match[1])
            values[place] = max(values.get(place, value), value)
    found = sorted(values.values(), reverse=True)[:count]
    return tuple(Tensor(size, shape, _source(name, text)) for size, shape, name in found)


def _source(name, text):
    """The operation in the model that an HLO instruction comes from, "jvp(Bert)/layer0/..." say."""
    found = re.search(rf'^\s+(?:ROOT )?%?{re.escape(name)} = .*?op_name="([^"]*)"', text, re.M)
    return found[1].removeprefix("jit(step)/") if found else name
