"""The search, on a simulated machine with a known best setting."""

import itertools
import math
import types

import jax
import jax.numpy as jnp
import pytest

from big_ssl.planning import planner, search, topology
from big_ssl.training.requirements import RequirementsError

GIB = 2**30
DEVICES = [types.SimpleNamespace(device_kind="TPU v5 lite", id=i) for i in range(64)]
SLOWER = dict(none=1.0, dots=1.1, full=1.33)
KEPT = dict(none=1.0, dots=0.4, full=0.1)


def _config(**keys):
    streams = dict(pairs=dict(batch_size=64 * 16))
    return dict(streams=streams, mesh=dict(data=-1, fsdp=1, tensor=1), **keys)


class Machine:
    """state: GiB of the state, sharded over fsdp; activations: GiB per device without remat; missing: what
    the time of a config leaves out."""

    def __init__(self, state, activations, missing=lambda config: []):
        self.state, self.activations, self.missing, self.compiled = state, activations, missing, []

    def set_up(self, config, devices):
        shape = dict(data=len(devices), fsdp=config["mesh"]["fsdp"], tensor=1)
        state = dict(w=jax.ShapeDtypeStruct((self.state * GIB // 4096, 1024), jnp.float32))
        return types.SimpleNamespace(mesh=types.SimpleNamespace(shape=shape), abstract_state=state)

    def record(self, config):
        remat, parts, fsdp = config.get("remat", "none"), config.get("grad_accum", 1), config["mesh"]["fsdp"]
        peak = self.state / fsdp + self.activations * KEPT[remat] / parts
        seconds = SLOWER[remat] * (1 + 0.05 * math.log2(parts)) * (1 + 0.1 * math.log2(fsdp))
        return dict(peak_bytes_per_device=peak * GIB, fits=peak < 15.75, estimated_step_seconds=seconds,
                    unestimated_operations=self.missing(config), compile_seconds=1.0)  # fmt: skip

    def make_plan(self, config, chips, devices):
        assert math.prod(config["mesh"].values()) == len(devices)
        self.compiled.append(config)
        return planner.Plan(self.record(config), None, None, 0)

    def best(self, config):
        candidates = search.candidates(config, 16)
        every = itertools.product(candidates, [2**i for i in range(7)])
        records = [self.record(config | candidate | dict(mesh=dict(fsdp=fsdp))) for candidate, fsdp in every]
        return min((r["estimated_step_seconds"] for r in records if r["fits"]), default=None)


def _search(monkeypatch, machine, config):
    monkeypatch.setattr(search, "set_up", machine.set_up)
    monkeypatch.setattr(search, "make_plan", machine.make_plan)
    return search.search(config, topology.parse("v5e:8x8"), DEVICES)


@pytest.mark.parametrize("keys", [{}, dict(remat="none"), dict(remat="full", grad_accum=4)])
@pytest.mark.parametrize(("state", "activations"), [(4, 4), (40, 4), (4, 12), (8, 100), (100, 8)])
def test_the_search_finds_the_fastest_fitting_setting_in_few_compilations(
    monkeypatch, keys, state, activations
):
    machine, config = Machine(state, activations), _config(**keys)
    actual, plan = _search(monkeypatch, machine, config)
    best = machine.best(config)
    if best is None:
        assert not plan.record["fits"]
    else:
        assert plan.record["estimated_step_seconds"] == best
        assert plan.record == machine.record(actual)
    assert len(machine.compiled) <= 20
    settings = [(c["mesh"]["fsdp"], c.get("remat"), c.get("grad_accum")) for c in machine.compiled]
    assert len(set(settings)) == len(settings)
    # Meshes on which the state alone does not fit are never compiled.
    assert all(state / fsdp < 15.75 for fsdp, *_ in settings)


def test_a_complete_estimate_is_better_than_a_faster_one_that_leaves_operations_out(monkeypatch, capsys):
    machine = Machine(4, 4, lambda config: ["kernel.1"] if config["mesh"]["fsdp"] == 1 else [])
    actual, plan = _search(monkeypatch, machine, _config())
    assert actual["mesh"]["fsdp"] == 2
    assert plan.record["unestimated_operations"] == []
    printed = capsys.readouterr().out
    assert "1 s a step without 1 operations (compiled" in printed
    # Where none is complete, the fastest is.
    actual, _ = _search(monkeypatch, Machine(4, 4, lambda config: ["kernel.1"]), _config())
    assert actual["mesh"]["fsdp"] == 1


def test_the_search_changes_only_keys_of_the_config(monkeypatch):
    machine = Machine(4, 4)
    actual, _ = _search(monkeypatch, machine, _config())
    assert actual.keys() == _config().keys()


def test_the_search_removes_mesh_rules(monkeypatch):
    rules = (("TPU", dict(data=-1, fsdp=1, tensor=1)),)
    actual, _ = _search(monkeypatch, Machine(40, 4), _config(mesh_rules=rules))
    assert actual["mesh_rules"] == ()


def test_a_setting_that_cannot_be_built_is_skipped(monkeypatch):
    machine = Machine(4, 12)
    make_plan = machine.make_plan

    def picky(config, chips, devices):
        if config["mesh"]["fsdp"] == 1:
            raise RequirementsError("bn_group does not divide the batch")
        return make_plan(config, chips, devices)

    machine.make_plan = picky
    actual, plan = _search(monkeypatch, machine, _config())
    assert plan.record["fits"]
    assert actual["mesh"]["fsdp"] == 2


def test_candidates_in_order_of_memory():
    assert search.candidates(_config(), 16) == [{}]
    assert search.candidates(_config(remat="none"), 16) == [dict(remat=r) for r in ("none", "dots", "full")]
    assert search.candidates(_config(remat="none", grad_accum=1), 12) == [
        dict(remat="none", grad_accum=1),
        dict(remat="dots", grad_accum=1),
        dict(remat="full", grad_accum=1),
        dict(remat="full", grad_accum=2),
        dict(remat="full", grad_accum=4),
    ]
