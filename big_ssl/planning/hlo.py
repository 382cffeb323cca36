"""FLOPs, cycles and collectives of one run of a compiled program, parsed from its optimised HLO text.

The compiler's own cost analysis counts a loop's body once; here it counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
ITEM_BYTES |= {f"{sign}{bits}": bits // 8 for sign in "su" for bits in (8, 16, 32, 64)}

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+[0-9]+|pred)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What the compiler writes for an operation whose cycles it can't estimate.
_NO_ESTIMATE = 2**63 - 1
# It writes nothing at all for others, of these kinds, that take time; buffers that a target allocates do not.
_TIMED = ("custom-call", "fusion")
_FREE = 'custom_call_target="AllocateBuffer"'
# A line break within an attribute, as a kernel's metadata have.
_BREAK = re.compile(r'\n(?="|\}\})')
# In the names of a branch that hardly ever runs, see models/deformable_convolution.py.
_FALLBACK = "/fallback/"
_DCN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


class Instruction(NamedTuple):
    """One line of HLO: %name = shape opcode(operands), attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


class Program(NamedTuple):
    """A parsed program.

    computations: {name: {instruction name: Instruction}}; runs: {name: number of executions}; fused: the
    computations inside fusions, whose cycles their caller includes; unknown_loops: the number of loops with
    unknown trip count, which are counted once.
    """

    computations: Mapping[str, Mapping[str, Instruction]]
    runs: Mapping[str, int]
    fused: frozenset[str]
    unknown_loops: int


class Collective(NamedTuple):
    """A collective that runs `runs` times among `group` devices.

    payload: bytes of the larger of a device's input and output; hidden: whether it overlaps with computation;
    dcn: whether it is between slices.
    """

    kind: str
    payload: float
    group: int
    runs: int
    hidden: bool
    dcn: bool


def parse(text: str) -> Program:
    """Parses HLO text."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = None
    for line in _BREAK.sub("", text).splitlines():
        if match := _COMPUTATION.match(line):
            current = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif match := _NAME.match(line):
            current[match[1]] = _instruction(match[1], line[match.end() :], "ROOT " in line[: match.end()])
    if entry is None:
        raise ValueError("no ENTRY computation in the program's text")
    runs: dict[str, int] = {}
    fused: set[str] = set()
    unknown = _count_runs(computations, entry, 1, runs, fused)
    return Program(computations, runs, frozenset(fused), unknown)


def estimated_cycles(program: Program) -> int:
    """The TPU compiler's own cycle estimate of all operations scheduled on the core; 0 without estimates.

    It does not include collectives (see `collectives`), nor `unestimated` operations.
    """
    return sum(
        program.runs.get(computation, 0) * cycles
        for computation, instruction in _scheduled(program)
        if (cycles := _cycles(instruction)) is not None
    )


def unestimated(program: Program) -> list[str]:
    """The names of operations whose cycles the TPU compiler did not estimate, collectives excluded."""
    return [
        instruction.name
        for _, instruction in _scheduled(program)
        if _cycles(instruction) is None and _takes_time(instruction, program)
    ]


def _scheduled(program):
    """Yields (computation, instruction) of all operations scheduled on the core."""
    for name, computation in program.computations.items():
        if name not in program.fused:
            for instruction in computation.values():
                yield name, instruction


def _cycles(instruction):
    """None without an estimate."""
    match = _CYCLES.search(instruction.attributes)
    return int(match[1]) if match and int(match[1]) != _NO_ESTIMATE else None


def _takes_time(instruction, program):
    """Whether an operation without an estimate should have one."""
    if _CYCLES.search(instruction.attributes):
        return True
    if instruction.opcode not in _TIMED or _FREE in instruction.attributes:
        return False
    called = [program.computations[name] for name in _CALLED.findall(instruction.attributes)]
    return not any(_kind(inner, "")[0] for computation in called for inner in computation.values())


def flops(program: Program) -> int:
    """FLOPs of one device's matmuls and convolutions, two per multiply-add, including recomputation."""
    return sum(
        program.runs.get(name, 0) * _flops(instruction, computation)
        for name, computation in program.computations.items()
        for instruction in computation.values()
        if instruction.opcode in ("dot", "convolution")
    )


def collectives(program: Program, devices: int) -> Iterator[Collective]:
    """Yields every collective. devices: the total number of devices."""
    for name, computation in program.computations.items():
        runs = program.runs.get(name, 0)
        # A collective spread over fusions is repeated in each of them; count the starting one.
        starts = any('"AsyncCollectiveStart"' in i.attributes for i in computation.values())
        for instruction in computation.values() if runs else ():
            kind, dcn = _kind(instruction, name)
            spread = '"async_collective_fusion_config"' in instruction.attributes
            if kind is None or (spread and not starts):
                continue
            group = _slices(instruction) if dcn else replica_groups(instruction.attributes, devices).shape[1]
            operands = sum(
                array_bytes(computation[o].shape) for o in instruction.operands if o in computation
            )
            if dcn:  # a send has a token and a context as further operands
                operands = array_bytes(computation[instruction.operands[0]].shape)
            payload = operands * group if kind == "all-gather" else operands
            hidden = spread or dcn or instruction.opcode.endswith("-start")
            yield Collective(kind, payload, group, runs, hidden, dcn)


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """The groups of devices that communicate in a collective: int[groups, size].

    Parses the three syntaxes of replica_groups; without replica_groups all `devices` are one group.
    """
    if match := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return np.array([_numbers(group) for group in re.findall(r"\{([\d,]*)\}", match[1])])
    if match := re.search(r"replica_groups=(\[\d+,\d+\]<=\S*)", attributes):
        return _iota(match[1].rstrip(","))
    if match := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}", attributes
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        ids = _iota(match[2]) if match[2] else np.arange(math.prod(sizes.values()))
        grouped = [list(sizes).index(axis) for axis in re.findall(r"'([^']+)'", match[3])]
        others = [axis for axis in range(len(sizes)) if axis not in grouped]
        size = math.prod(list(sizes.values())[axis] for axis in grouped)
        return ids.reshape(*sizes.values()).transpose(*others, *grouped).reshape(-1, size)
    return np.arange(devices)[None]


def collective_bytes(collectives) -> dict[str, int]:
    """{kind: bytes} summed over collectives: payload times runs."""
    totals = dict.fromkeys(KINDS, 0)
    for collective in collectives:
        totals[collective.kind] += int(collective.payload * collective.runs)
    return totals


def array_bytes(shape: str) -> float:
    """Bytes of an HLO shape such as "(f32[2,3]{1,0}, bf16[4]{0})", without tile padding."""
    return sum(
        ITEM_BYTES.get(kind, 1) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(shape)
    )


def _instruction(name, text, root):
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, tail = text[end:].strip().partition("(")
    close = _closing("(" + tail, 0) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", tail[:close])) if opcode != "constant" else (tail[:close],)
    return Instruction(name, text[:end], opcode, operands, tail[close + 1 :], root)


def _closing(text, start):
    """The index of the parenthesis that closes the one at start."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def _count_runs(computations, name, times, runs, fused):
    """Adds `times` runs of a computation and its callees; returns the number of loops of unknown length."""
    runs[name] = runs.get(name, 0) + times
    unknown = 0
    for instruction in computations[name].values():
        if instruction.opcode == "while":
            trips = _trip_count(instruction, computations, computations[name])
            unknown += trips is None
            body = re.search(r"body=%?([\w.\-]+)", instruction.attributes)[1]
            unknown += _count_runs(computations, body, times * (trips or 1), runs, fused)
            continue
        called = _CALLED.findall(instruction.attributes)
        for branches in _BRANCHES.findall(instruction.attributes):
            called += re.findall(r"[\w.\-]+", branches)
        if instruction.opcode == "conditional":
            called = [target for target in called if not _is_fallback(computations[target])]
        for target in called:
            if instruction.opcode not in ("call", "conditional", "async-start") or name in fused:
                fused.add(target)
            unknown += _count_runs(computations, target, times, runs, fused)
    return unknown


def _is_fallback(computation):
    return any(_FALLBACK in instruction.attributes for instruction in computation.values())


def _trip_count(loop, computations, caller):
    """A loop's trip count: the compiler's annotation, or derived from `counter < limit` with a counter that
    starts at a constant and grows by one; None otherwise."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(noted[1])
    condition = computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]]
    test = next((i for i in condition.values() if i.root), None)
    if test is None or test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (condition[operand] for operand in test.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    start = caller.get(loop.operands[0])
    if limit.opcode != "constant" or index is None or start is None or start.opcode != "tuple":
        return None
    first = caller.get(start.operands[int(index[1])])
    while first is not None and first.opcode in ("copy", "bitcast"):
        first = caller.get(first.operands[0])
    if first is None or first.opcode != "constant":
        return None
    return max(int(limit.operands[0]) - int(first.operands[0]), 0)


def _kind(instruction, computation):
    """A collective's (kind, whether between slices); (None, False) for any other instruction."""
    if instruction.opcode == "send" and (match := _DCN.search(instruction.attributes)):
        kind = match[1].lower().replace("_", "-")
        return (kind if kind in KINDS else "collective-permute"), True
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None, False
    # The TPU compiler writes a fused reduce-scatter as an all-reduce of which each device keeps a slice.
    return ("reduce-scatter" if computation.startswith("all-reduce-scatter") else opcode), False


def _iota(text):
    """Parses an iota of device ids: "[2,4]<=[8]", "[2,4]<=[4,2]T(1,0)" (transposed), or a shape alone."""
    shapes = [_numbers(shape) for shape in re.findall(r"\[([\d,]+)\]", text)]
    ids = np.arange(math.prod(shapes[-1])).reshape(shapes[-1])
    if match := re.search(r"T\(([\d,]+)\)", text):
        ids = ids.transpose(_numbers(match[1]))
    return ids.reshape(shapes[0]) if "<=" in text else ids


def _numbers(text):
    return [int(number) for number in text.split(",")]


def _slices(instruction):
    """The number of slices in a collective between slices."""
    target = re.search(r'_xla_megascale_target="\{([\d,]*)\}', instruction.attributes)
    return target[1].count(",") + 1 if target else 2


def _flops(instruction, computation):
    left, right = (_dims(computation[operand].shape) for operand in instruction.operands[:2])
    out = math.prod(_dims(instruction.shape))
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return 2 * out * math.prod(left[int(axis)] for axis in axes[1].split(",") if axis)
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", instruction.attributes)
    result = _dims(instruction.shape)
    taps = [
        _valid_taps(
            left[labels[1].index(axis)],
            right[labels[2].index(axis)],
            result[labels[3].index(axis)],
            _window(instruction.attributes, int(axis)),
        )
        for axis in labels[1]
        if axis.isdigit()
    ]
    spatial = math.prod(result[labels[3].index(axis)] for axis in labels[3] if axis.isdigit())
    return 2 * (out // spatial) * right[labels[2].index("i")] * math.prod(taps)


def _dims(shape):
    return [int(size) for size in _ARRAY.search(shape)[2].split(",") if size]


def _window(attributes, axis):
    """{size, stride, pad, lhs_dilate, rhs_dilate} of one spatial axis, as text."""
    text = re.search(r"window=\{([^}]*)\}", attributes)[1]
    return {key: value.split("x")[axis] for key, value in (item.split("=") for item in text.split())}


def _valid_taps(size, kernel, out, window):
    """The number of (output, tap) pairs along one axis that read an element, not padding or dilation holes.

    The TPU compiler writes batched matmuls as convolutions with such holes.
    """
    stride, hole = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    step, before = int(window.get("rhs_dilate", 1)), int(window.get("pad", "0_0").split("_")[0])
    last = (size - 1) * hole
    return sum(
        1
        for tap in range(kernel)
        for position in range(tap * step - before, tap * step - before + out * stride, stride)
        if 0 <= position <= last and position % hole == 0
    )
