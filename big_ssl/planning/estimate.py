"""Estimates a compiled step's time and MFU, before any chip is rented.

- Computation: the TPU compiler's own cycle estimate of each scheduled operation (`estimated_cycles` in the
  optimised HLO, which includes memory bandwidth), times the loops' trip counts, over the chip's clock.
- Collectives, for which the compiler has no estimate: payload over the bandwidth of the links in use, by the
  formulas of the scaling book (jax-ml.github.io/scaling-book/sharding), or over the host's network between
  slices.
- Together: collectives that overlap with computation cost time only if they take longer than it; the others
  are added. step = max(computation, hidden collectives) + exposed collectives.

Not included: latency of small collectives, input data, checkpoints, evaluations, failures.
"""

from collections.abc import Sequence

from big_ssl.parallel.hardware import Chip
from big_ssl.planning import hlo
from big_ssl.planning.topology import Topology

# {dimensions: axis length from which an axis is a ring}; a shorter one is a line, with half the bandwidth.
_RING = {2: 16, 3: 4}


def step_seconds(program: hlo.Program, collectives: Sequence[hlo.Collective], chip: Chip, topology: Topology):
    """Estimated seconds of one step.

    Args:
      program: the compiled step.
      collectives: its hlo.collectives.
      chip: the device.
      topology: the slices, for the links in use.

    Returns:
      Seconds; None if the program has no cycle estimates.
    """
    cycles = hlo.estimated_cycles(program)
    if not cycles:
        return None
    timed = [(c.hidden, c.runs * collective_seconds(c, chip, topology)) for c in collectives]
    hidden = sum(seconds for is_hidden, seconds in timed if is_hidden)
    exposed = sum(seconds for is_hidden, seconds in timed if not is_hidden)
    return max(cycles / chip.clock, hidden) + exposed


def collective_seconds(collective: hlo.Collective, chip: Chip, topology: Topology) -> float:
    """Seconds of one run of a collective that has the links to itself."""
    n = max(collective.group, 1)
    bandwidth = chip.dcn / chip.devices_per_host if collective.dcn else _bandwidth(n, chip, topology)
    moved = dict.fromkeys(hlo.KINDS, (n - 1) / n) | {
        "all-reduce": 2 * (n - 1) / n,
        "all-to-all": n / 4,  # the payload is one device's part
        "collective-permute": 1.0,
    }
    return moved[collective.kind] * collective.payload / bandwidth


def mfu(model_flops: float, seconds: float, devices: int, chip: Chip) -> float:
    """Model FLOPs utilisation: the model's FLOPs over the chips' peak FLOPs in that time."""
    return model_flops / (seconds * devices * chip.flops)


def _bandwidth(group, chip, topology):
    """Bytes/s into a device of a group that spans as few axes of the torus as possible."""
    covered, sizes = chip.cores, []
    for size in sorted(topology.shape, reverse=True):
        if covered < group:
            covered *= size
            sizes.append(size)
    rings = covered == group and min(sizes, default=0) >= _RING[chip.ici_dimensions]
    return chip.ici_link * max(len(sizes), 1) * (2 if rings else 1)
