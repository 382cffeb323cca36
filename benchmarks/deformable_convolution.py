"""The time of deformable convolution's implementations on a TPU, without one: forward and backward.

    python -m benchmarks.deformable_convolution [v5p]

needs libtpu and compiles for minutes. Two figures for each: the compiler's estimate, and the time of its
final schedule: for each operation the larger of its instruction words by the clock and its copies to and from
memory by the bandwidth. The schedule knows no latency of single copies: for gathers it is a lower bound.
"""

import functools
import os
import pathlib
import re
import sys
import tempfile

_DUMP = tempfile.mkdtemp()
# Read once, when libtpu is loaded.
os.environ["LIBTPU_INIT_ARGS"] = (
    f"--xla_jf_dump_to={_DUMP} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from big_ssl.models import deformable_convolution as dcn  # noqa: E402
from big_ssl.parallel import hardware  # noqa: E402
from big_ssl.planning import hlo, topology  # noqa: E402

# P3, P4 and P5 of an image of 800 x 1344 pixels, at Dynamic Head's width, in bfloat16.
BATCH, CHANNELS = 2, 256
CASES = {
    (100, 168): ("gather", "tiles"),
    (50, 84): ("one_hot", "tiles"),
    (25, 42): ("gather", "one_hot", "tiles"),
}
_SHAPES = {"v4": "1x1x1", "v5p": "1x1x1"}
# Cores that share a program's work; a dump tells of one.
_CORES = {"v4": 2, "v5p": 2}
# Bandwidth that copies reach, and the bytes in their unit.
_EFFICIENCY, _GRANULE = 0.85, 32

_WORD = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+([A-Z, ]*):")
_EXIT = re.compile(r"= scmp\.\w+\.\w+(?:\.totalorder)? \S+, (\d+) /\* loop exit test")
_WAIT = re.compile(r"dma\.done\.wait .*?, (\d+) /\* pipeline-emitter-dma-wait")
_COPY = re.compile(r"= dma\.(\w+) .*?/\*size_in_granules=\*/(\d+)")


class Loop:
    """A loop of a schedule: instruction words, copies and waits of one turn, without inner loops."""

    def __init__(self):
        self.turns, self.words, self.copied, self.waited, self.loops = 1, 0, 0, 0, []

    def total(self):
        """(words, granules copied) of all turns. A pipeline waits for what it copies, two turns late."""
        inner = [loop.total() for loop in self.loops]
        words, copied = self.words + sum(w for w, _ in inner), sum(c for _, c in inner)
        if self.waited:
            return words * self.turns, copied * self.turns + self.waited * max(1, self.turns - 2)
        return words * self.turns, (copied + self.copied) * self.turns


def read_schedule(lines):
    """(instruction words, bytes copied) of one instruction's final schedule."""
    stack, ending = [Loop()], None
    for line in lines:
        if word := _WORD.match(line):
            if ending == 0 and len(stack) > 1:
                stack.pop()
            ending = None if ending == 0 else ending
            if "LB" in word[1]:
                stack[-1].loops.append(Loop())
                stack.append(stack[-1].loops[-1])
            stack[-1].words += 1
            ending = ending and ending - 1
        loop = stack[-1]
        if wait := _WAIT.search(line):
            loop.waited += int(wait[1])
        if (copy := _COPY.search(line)) and ("hbm" in line or copy[1] == "general"):
            loop.copied += int(copy[2])
        if stop := _EXIT.search(line):
            loop.turns, ending = int(stop[1]), 1
    words, granules = stack[0].total()
    return words, granules * _GRANULE


def schedules():
    """{instruction: (words, bytes)} of what was compiled since the last call."""
    times = {}
    for path in sorted(pathlib.Path(_DUMP).glob("*-final_bundles.txt")):
        name = re.match(r"\d+-(.*)-\d+-final_bundles\.txt", path.name)
        if name and "schedule-analysis" not in path.name:
            times[name[1]] = read_schedule(path.read_text(errors="replace").splitlines())
        path.unlink()
    return times


def measure(generation, implementation, size, stride=1):
    """(estimated seconds, scheduled seconds) of a forward and a backward pass."""
    device = topology.devices(topology.parse(f"{generation}:{_SHAPES.get(generation, '1x1')}"))[0]
    chip, positions = hardware.chip(device.device_kind), [-(-side // stride) for side in size]
    array = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device))
    x = array((BATCH, *size, CHANNELS), jnp.bfloat16)
    y = array((BATCH, *positions, CHANNELS), jnp.bfloat16)
    sampling = [array((BATCH, *positions, n), jnp.float32) for n in (18, 9)]
    kernel = array((3, 3, CHANNELS, CHANNELS), jnp.bfloat16)
    convolve = dcn.IMPLEMENTATIONS[implementation]

    def both(x, offsets, mask, kernel, grad):
        y = dcn._forward(convolve, stride)(x, offsets, mask, kernel)
        return y, dcn._backward(convolve, stride)(x, offsets, mask, kernel, grad)

    with tempfile.TemporaryDirectory() as folder:
        jax.jit(both).lower(x, *sampling, kernel, y).compile(compiler_options={"xla_dump_to": folder})
        files = pathlib.Path(folder).glob("*after_codegen.txt")
        program = hlo.parse(max(files, key=lambda path: path.stat().st_size).read_text())
    return hlo.estimated_cycles(program) / chip.clock, _scheduled(program, chip, _CORES.get(generation, 1))


def _scheduled(program, chip, cores):
    """Seconds. Equal instructions are dumped once: they have equal estimates."""
    times, seconds = schedules(), 0.0
    estimates = list(hlo._estimates(program))
    by_estimate = {cycles: times[name] for _, name, cycles in estimates if name in times}
    for computation, name, cycles in estimates:
        estimate = (0 if cycles == hlo._NO_ESTIMATE else cycles, 0)
        words, copied = times.get(name) or by_estimate.get(cycles, estimate)
        time = max(words / chip.clock, copied * cores / (_EFFICIENCY * chip.hbm_bandwidth))
        seconds += program.runs.get(computation, 0) * time
    return seconds


def main() -> None:
    generation = sys.argv[1] if len(sys.argv) > 1 else "v5p"
    print(f"{generation}, batch {BATCH}, {CHANNELS} channels, 3x3, forward and backward, milliseconds")
    for size, implementations in CASES.items():
        for name in implementations:
            estimated, scheduled = measure(generation, name, size)
            print(
                f"{size} {name:>8}: estimated {estimated * 1e3:6.2f}, scheduled {scheduled * 1e3:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
