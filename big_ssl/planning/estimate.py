"""How long a compiled step takes, how well it uses the chips, and what a whole run costs.

The step's time is an estimate before any chip is rented:

- computation: the cycles that the TPU compiler itself puts on each operation it schedules
  (`estimated_cycles` in the optimised HLO; they include the memory's bandwidth), loops
  by their trip counts, over the chip's clock;
- exchanges between chips, which the compiler does not price: payload over the bandwidth of the
  links in use, by the formulas of the scaling book (jax-ml.github.io/scaling-book/sharding);
  between slices, over the host's network;
- together: what runs beside computation costs time only where it takes longer than that; what
  does not is added. step = max(computation, hidden exchanges) + exposed exchanges.

Not in it: latency of small exchanges, input data, checkpoints, evaluations, failures.
"""

from collections.abc import Sequence

from big_ssl.parallel.hardware import Chip
from big_ssl.planning import hlo
from big_ssl.planning.topology import Topology

# An axis this long closes into a ring; a shorter one is a line, with half the bandwidth.
_RING = {2: 16, 3: 4}


def step_seconds(program: hlo.Program, found: Sequence[hlo.Collective], chip: Chip, topology: Topology):
    """Estimated seconds of one step; None where the program carries no cycle estimates."""
    cycles = hlo.estimated_cycles(program)
    if not cycles:
        return None
    exchanges = [(c.hidden, c.runs * exchange_seconds(c, chip, topology)) for c in found]
    hidden = sum(seconds for is_hidden, seconds in exchanges if is_hidden)
    exposed = sum(seconds for is_hidden, seconds in exchanges if not is_hidden)
    return max(cycles / chip.clock, hidden) + exposed


def exchange_seconds(collective: hlo.Collective, chip: Chip, topology: Topology) -> float:
    """Seconds of one run of a collective, were it alone on the links."""
    n = max(collective.group, 1)
    bandwidth = chip.dcn / chip.devices_per_host if collective.dcn else _bandwidth(n, chip, topology)
    moved = dict.fromkeys(hlo.KINDS, (n - 1) / n) | {
        "all-reduce": 2 * (n - 1) / n,
        "all-to-all": n / 4,  # of a payload that is one device's part, not the whole
        "collective-permute": 1.0,
    }
    return moved[collective.kind] * collective.payload / bandwidth


def mfu(model_flops: float, seconds: float, devices: int, chip: Chip) -> float:
    """Model FLOPs utilisation: the model's arithmetic over what the chips could do in that time."""
    return model_flops / (seconds * devices * chip.flops)


def _bandwidth(group, chip, topology):
    """Bytes/s into a device of a group that lies along as few axes of the torus as hold it."""
    reach, sizes = chip.cores, []
    for size in sorted(topology.shape, reverse=True):
        if reach < group:
            reach *= size
            sizes.append(size)
    rings = reach == group and min(sizes, default=0) >= _RING[chip.ici_dimensions]
    return chip.ici_link * max(len(sizes), 1) * (2 if rings else 1)
