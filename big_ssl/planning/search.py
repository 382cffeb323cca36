"""The fastest setting that fits, in few compilations."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from big_ssl.parallel import hardware
from big_ssl.planning.advice import fsdp_ways, mesh_sizes
from big_ssl.planning.planner import Plan, make_plan, set_up
from big_ssl.planning.program import state_bytes
from big_ssl.planning.report import console, memory
from big_ssl.planning.topology import Topology
from big_ssl.training.requirements import RequirementsError

_MANY_COMPILATIONS = 16  # after these it looks at no new neighbours
REMAT = ("none", "dots", "full")  # from the fastest to the most frugal


class Setting(NamedTuple):
    """A point of the search: fsdp ways, and an index into rungs()."""

    fsdp: int
    rung: int


def rungs(config: Mapping, local_batch: int) -> list[dict]:
    """Ways to save memory that the config has, from the fastest to the most frugal: first more is
    recomputed, then fewer examples run at a time."""
    recomputed: list[dict] = [dict(remat=policy) for policy in REMAT] if "remat" in config else [{}]
    if "grad_accum" not in config:
        return recomputed
    pieces = [2**i for i in range(local_batch.bit_length()) if local_batch % 2**i == 0]
    accumulated = [recomputed[-1] | dict(grad_accum=count) for count in pieces]
    return [rung | dict(grad_accum=1) for rung in recomputed[:-1]] + accumulated


def search(config: Mapping, topology: Topology, devices: Sequence) -> tuple[dict, Plan]:
    """(config, plan) of the best setting found; of the closest, where none fits.

    On the ladder of rungs() memory only falls, so bisection finds the fastest rung that fits; from there
    it climbs to whichever neighbour is faster (fsdp doubled or halved, one rung faster) until none is.
    Meshes that the state alone overfills are never compiled.
    """
    return _Search(config, topology, devices).go()


class _Search:
    """Remembers what has been compiled, so that nothing is compiled twice."""

    def __init__(self, config, topology, devices):
        self.config, self.topology, self.devices = config, topology, devices
        setup = set_up(config, devices)
        sizes = setup.mesh.shape
        self.tensor = sizes["tensor"]
        ways = sizes["data"] * sizes["fsdp"]
        limit = hardware.chip(devices[0].device_kind).hbm
        held = {
            ways: state_bytes(setup.abstract_state, self._mesh(ways), config.get("sharding", ()))
            for ways in fsdp_ways(len(devices), self.tensor, topology.slices)
        }
        possible = {ways: size for ways, size in held.items() if size is not None}
        self.ways = [n for n, size in possible.items() if size < limit] or [min(possible, key=possible.get)]
        self.start = min(self.ways, key=lambda n: abs(n - sizes["fsdp"]))
        local = min(stream["batch_size"] for stream in config["streams"].values()) // ways
        self.rungs = rungs(config, local)
        self.plans: dict[Setting, Plan | None] = {}
        console.print(f"searching fsdp in {self.ways}, {len(self.rungs)} ways to save memory")

    def go(self):
        best = self._fastest_rung(self.start)
        while not self._fits(best) and best.fsdp * 2 in self.ways:
            best = self._fastest_rung(best.fsdp * 2)
        improving = self._fits(best)
        while improving:
            near = min(self._neighbours(best), key=self._score, default=best)
            improving = self._score(near) < self._score(best)
            best = near if improving else best
        plan = self.plans[best]
        if plan is None:
            raise RequirementsError("--search: no setting that it tried can be built from this config")
        changes = self._changes(best)
        flags = [f"'--config.{key}={value}'" for key, value in changes.items() if key == "mesh_rules"]
        flags += [f"--config.{key}={changes[key]}" for key in ("remat", "grad_accum") if key in changes]
        flags += [f"--config.mesh.{axis}={changes['mesh'][axis]}" for axis in ("data", "fsdp")]
        console.print(f"{'best' if self._fits(best) else 'closest'}: {' '.join(flags)}")
        return self.config | changes, plan

    def _fastest_rung(self, fsdp):
        """The first rung that fits on this mesh, by bisection; the last one where none does."""
        low, high = 0, len(self.rungs) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(Setting(fsdp, middle)) else (middle + 1, high)
        self._plan(Setting(fsdp, low))
        return Setting(fsdp, low)

    def _neighbours(self, best):
        found = [Setting(n, best.rung) for n in (best.fsdp * 2, best.fsdp // 2) if n in self.ways]
        if best.rung:
            found += [Setting(n, best.rung - 1) for n in (best.fsdp, best.fsdp * 2) if n in self.ways]
        return [s for s in found if s in self.plans or len(self.plans) < _MANY_COMPILATIONS]

    def _fits(self, setting):
        plan = self._plan(setting)
        return plan is not None and plan.record["fits"]

    def _score(self, setting):
        return self._plan(setting).record["estimated_step_seconds"] if self._fits(setting) else float("inf")

    def _changes(self, setting):
        changes = self.rungs[setting.rung] | dict(mesh=self._mesh(setting.fsdp))
        # A rule for this hardware would win over the mesh to try.
        return changes | dict(mesh_rules=()) if self.config.get("mesh_rules") else changes

    def _mesh(self, fsdp):
        return mesh_sizes(len(self.devices), self.tensor, fsdp)

    def _plan(self, setting):
        if setting not in self.plans:
            try:
                self.plans[setting] = make_plan(
                    self.config | self._changes(setting), self.topology, self.devices
                )
            except RequirementsError as error:
                console.print(f"  {setting}: {error}")
                self.plans[setting] = None
            else:
                self._say(setting, self.plans[setting].record)
        return self.plans[setting]

    def _say(self, setting, record):
        what = " ".join(f"{key}={value}" for key, value in self.rungs[setting.rung].items())
        seconds = record["estimated_step_seconds"]
        time = f"{seconds:.4g} s a step" if seconds else "time unknown"
        fits = "fits" if record["fits"] else "does not fit"
        console.print(
            f"  {len(self.plans)}: fsdp={setting.fsdp} {what}: {memory(record['peak_bytes_per_device'])}, "
            f"{fits}, {time} (compiled in {record['compile_seconds'] or 0:.0f} s)"
        )
