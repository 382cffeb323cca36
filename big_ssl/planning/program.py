"""Compiles a training step for devices that are not attached."""

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
    """A device's buffer during a step. size: bytes; shape: HLO; source: the operation that produces it."""

    size: int
    shape: str
    source: str


class Program(NamedTuple):
    """A compiled step. Bytes are per device.

    text: the optimised HLO, "" if the compiler failed before producing it.
    arguments: bytes of the state and the batch; temporaries: bytes besides the arguments and the outputs that
    alias them; peak: arguments, temporaries, program and other outputs.
    largest: the three largest tensors, only if the step does not fit.
    seconds: tracing and compilation.
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
            # With this option the compiler dumps its program and buffers even if they don't fit.
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            if "CompileTimeHbmOom" not in str(error):
                raise
            arguments = argument_bytes((setup.abstract_state, batch))
            return _too_large(str(error), pathlib.Path(folder), arguments, time.monotonic() - began)
        # Not compiled.as_text(): it uses jaxlib's parser, and the newer TPU compiler writes operations that
        # it can't parse.
        text = _dumped(pathlib.Path(folder), "after_codegen.txt")
    memory = compiled.memory_analysis()
    other_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = arguments + temporaries + other_outputs + memory.generated_code_size_in_bytes
    return Program(text, arguments, temporaries, peak, True, (), time.monotonic() - began)


def argument_bytes(arguments) -> int:
    """Bytes per device of abstract arrays with shardings, before the compiler pads them."""
    return sum(bytes_per_device(leaf, leaf.sharding) for leaf in jax.tree.leaves(arguments))


def state_bytes(abstract_state, sizes: Mapping[str, int], overrides: Sequence = ()) -> int | None:
    """Bytes per device of the state; compiles nothing.

    Args:
      abstract_state: pytree of ShapeDtypeStructs.
      sizes: {axis: size} of the mesh.
      overrides: config.sharding.

    Returns:
      Bytes; None if the state can't be sharded so.
    """
    mesh = AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES)
    try:
        shardings = state_shardings(mesh, abstract_state, overrides)
    except ValueError:
        return None
    return sum(jax.tree.leaves(jax.tree.map(bytes_per_device, abstract_state, shardings)))


def _too_large(message, folder, arguments, seconds):
    text = _dumped(folder, "after_optimizations.txt")
    largest = _largest(_dumped(folder, "after_optimizations-buffer-assignment.txt"), text)
    required = _required(message)
    return Program(text, arguments, max(required - arguments, 0), required, False, largest, seconds)


def _required(message):
    """The required bytes in an out-of-memory message."""
    number, unit = re.search(r"\(([\d.]+)([KMGT])\) exceeds", message).groups()
    return int(float(number) * 2 ** (10 * (1 + "KMGT".index(unit))))


def _dumped(folder, ending):
    """Reads the step's dump: the largest file, since small helper programs are dumped too; "" without any."""
    files = sorted(folder.glob(f"*.{ending}"), key=lambda path: path.stat().st_size)
    return files[-1].read_text() if files else ""


def _largest(assignment, text, count=3):
    """The largest buffers in HBM, each with its largest value."""
    pattern = re.compile(
        r"^ value: <\d+ (\S+?)(?:\{[\d,]*\})? @0> \(size=(\d+),offset=(\d+)\): (\w+\[[\d,]*\])"
    )
    values: dict[tuple, tuple] = {}
    allocation = ""
    for line in assignment.splitlines():
        if line.startswith("allocation "):
            allocation = line
        elif match := pattern.match(line):
            buffer, value = (allocation, match[3]), (int(match[2]), match[4], match[1])
            values[buffer] = max(values.get(buffer, value), value)
    largest = sorted(values.values(), reverse=True)[:count]
    return tuple(Tensor(size, shape, _source(name, text)) for size, shape, name in largest)


def _source(name, text):
    """The model operation of an HLO instruction, such as "jvp(Bert)/layer0/..."; else its own name."""
    match = re.search(rf'^\s+(?:ROOT )?%?{re.escape(name)} = .*?op_name="([^"]*)"', text, re.M)
    return match[1].removeprefix("jit(step)/") if match else name
