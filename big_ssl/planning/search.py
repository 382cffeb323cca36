"""Searches the fastest setting that fits, in few compilations."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from big_ssl.parallel import hardware
from big_ssl.planning.advice import fsdp_sizes, mesh_sizes
from big_ssl.planning.planner import Plan, make_plan, set_up
from big_ssl.planning.program import state_bytes
from big_ssl.planning.report import console, memory
from big_ssl.planning.topology import Topology
from big_ssl.training.requirements import RequirementsError

_MAX_COMPILATIONS = 16  # after these, the search compiles no new neighbours
REMAT = ("none", "dots", "full")  # from the fastest to the least memory


class Setting(NamedTuple):
    """A point of the search. fsdp: the mesh size; candidate: an index into candidates()."""

    fsdp: int
    candidate: int


def candidates(config: Mapping, local_batch: int) -> list[dict]:
    """Values of the config's memory options, from the fastest to the least memory.

    First remat recomputes more, then grad_accum runs fewer examples at a time. local_batch: examples per
    device.
    """
    remat: list[dict] = [dict(remat=policy) for policy in REMAT] if "remat" in config else [{}]
    if "grad_accum" not in config:
        return remat
    counts = [2**i for i in range(local_batch.bit_length()) if local_batch % 2**i == 0]
    accumulated = [remat[-1] | dict(grad_accum=count) for count in counts]
    return [candidate | dict(grad_accum=1) for candidate in remat[:-1]] + accumulated


def search(config: Mapping, topology: Topology, devices: Sequence) -> tuple[dict, Plan]:
    """Searches mesh.fsdp, remat and grad_accum.

    A setting whose time the compiler estimates in full is better than any that leaves operations out, and the
    fastest of either kind the best.

    Memory decreases along candidates(), so bisection finds the fastest candidate that fits. Hill climbing
    follows, over neighbours with fsdp doubled or halved and the next faster candidate. Meshes on which the
    state alone does not fit are never compiled.

    Args:
      config: validated.
      topology: the slices.
      devices: topology.devices(topology).

    Returns:
      (config, plan) of the best setting; of the closest, if none fits.
    """
    return _Search(config, topology, devices).run()


class _Search:
    """Caches compiled plans by setting."""

    def __init__(self, config, topology, devices):
        self.config, self.topology, self.devices = config, topology, devices
        setup = set_up(config, devices)
        sizes = setup.mesh.shape
        self.tensor = sizes["tensor"]
        num_shards = sizes["data"] * sizes["fsdp"]
        limit = hardware.chip(devices[0].device_kind).hbm
        bytes_by_fsdp = {
            n: state_bytes(setup.abstract_state, self._mesh(n), config.get("sharding", ()))
            for n in fsdp_sizes(len(devices), self.tensor, topology.slices)
        }
        possible = {n: size for n, size in bytes_by_fsdp.items() if size is not None}
        fitting = [n for n, size in possible.items() if size < limit]
        self.fsdp_sizes = fitting or [min(possible, key=possible.get)]
        self.start = min(self.fsdp_sizes, key=lambda n: abs(n - sizes["fsdp"]))
        local = min(stream["batch_size"] for stream in config["streams"].values()) // num_shards
        self.candidates = candidates(config, local)
        self.plans: dict[Setting, Plan | None] = {}
        console.print(f"searching fsdp in {self.fsdp_sizes}, {len(self.candidates)} ways to save memory")

    def run(self):
        best = self._fastest_candidate(self.start)
        while not self._fits(best) and best.fsdp * 2 in self.fsdp_sizes:
            best = self._fastest_candidate(best.fsdp * 2)
        improving = self._fits(best)
        while improving:
            neighbour = min(self._neighbours(best), key=self._score, default=best)
            improving = self._score(neighbour) < self._score(best)
            best = neighbour if improving else best
        plan = self.plans[best]
        if plan is None:
            raise RequirementsError("--search: none of the settings tried can be built from this config")
        changes = self._changes(best)
        flags = [f"'--config.{key}={value}'" for key, value in changes.items() if key == "mesh_rules"]
        flags += [f"--config.{key}={changes[key]}" for key in ("remat", "grad_accum") if key in changes]
        flags += [f"--config.mesh.{axis}={changes['mesh'][axis]}" for axis in ("data", "fsdp")]
        console.print(f"{'best' if self._fits(best) else 'closest'}: {' '.join(flags)}")
        return self.config | changes, plan

    def _fastest_candidate(self, fsdp):
        """The first candidate that fits on this mesh, by bisection; the last one if none does."""
        low, high = 0, len(self.candidates) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(Setting(fsdp, middle)) else (middle + 1, high)
        self._plan(Setting(fsdp, low))
        return Setting(fsdp, low)

    def _neighbours(self, best):
        points = [(best.fsdp * 2, best.candidate), (best.fsdp // 2, best.candidate)]
        if best.candidate:
            points += [(best.fsdp, best.candidate - 1), (best.fsdp * 2, best.candidate - 1)]
        settings = [Setting(n, candidate) for n, candidate in points if n in self.fsdp_sizes]
        return [s for s in settings if s in self.plans or len(self.plans) < _MAX_COMPILATIONS]

    def _fits(self, setting):
        plan = self._plan(setting)
        return plan is not None and plan.record["fits"]

    def _score(self, setting):
        """(whether the time leaves operations out, seconds): the less the better."""
        if not self._fits(setting):
            return True, float("inf")
        record = self._plan(setting).record
        return bool(record["unestimated_operations"]), record["estimated_step_seconds"]

    def _changes(self, setting):
        changes = self.candidates[setting.candidate] | dict(mesh=self._mesh(setting.fsdp))
        # A mesh rule for this hardware would override the mesh to try.
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
                self._print(setting, self.plans[setting].record)
        return self.plans[setting]

    def _print(self, setting, record):
        options = " ".join(f"{key}={value}" for key, value in self.candidates[setting.candidate].items())
        seconds = record["estimated_step_seconds"]
        time = f"{seconds:.4g} s a step" if seconds else "time unknown"
        if missing := record["unestimated_operations"]:
            time += f" without {len(missing)} operations"
        fits = "fits" if record["fits"] else "does not fit"
        console.print(
            f"  {len(self.plans)}: fsdp={setting.fsdp} {options}: {memory(record['peak_bytes_per_device'])}, "
            f"{fits}, {time} (compiled in {record['compile_seconds'] or 0:.0f} s)"
        )
