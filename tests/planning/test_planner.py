"""Whole plans: the record before and after compilation."""

import types

import jax
import pytest

from big_ssl.parallel import hardware
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.planning import planner, topology
from big_ssl.planning.program import Program, Tensor
from big_ssl.planning.report import print_plan
from big_ssl.training.requirements import RequirementsError
from configs.align_l2 import get_config

KEYS = """topology devices params global_batch hbm_limit_bytes argument_bytes temp_bytes
peak_bytes_per_device fits model_flops_per_step compiled_flops_per_step collective_bytes_per_step
estimated_step_seconds unestimated_operations estimated_mfu compile_seconds total_steps
device_hours""".split()  # noqa: SIM905
V5E = topology.parse("v5e:2x4")
TEXT = """ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %dot.1 = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %kernel.1 = f32[8,4]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %all-reduce.1 = f32[8,4]{1,0} all-reduce(%x), replica_groups=[1,8]<=[8], backend_config={"estimated_cycles":"1503000"}
}
"""  # noqa: E501


@pytest.fixture
def config():
    return get_config("tiny").to_dict()


@pytest.fixture
def compiled(monkeypatch):
    """Eight CPU devices posing as v5e; compiled(program) replaces the compiler's result."""
    chip = hardware.chip("TPU v5 lite")
    monkeypatch.setattr(planner.hardware, "chip", lambda kind: chip)

    def use(program):
        monkeypatch.setattr(planner, "compile_step", lambda setup, batch: program)
        return planner.make_plan

    return use


def test_a_plan_that_fits(compiled, config, capsys):
    make_plan = compiled(Program(TEXT, 2**20, 2**21, 2**22, True, (), 3.21))
    plan = make_plan(config, V5E, jax.devices())
    record = plan.record
    assert list(record) == KEYS
    assert None not in record.values()
    assert record["unestimated_operations"] == ["kernel.1"]
    assert (record["topology"], record["devices"], record["fits"]) == ("v5e:2x4", 8, True)
    assert (record["global_batch"], record["total_steps"], record["compile_seconds"]) == (16, 20, 3.2)
    assert record["compiled_flops_per_step"] == 8 * 2 * 8 * 8 * 4
    assert record["collective_bytes_per_step"]["all-reduce"] == 8 * 4 * 4
    assert record["estimated_step_seconds"] == pytest.approx(1e-3, rel=1e-3)
    assert record["estimated_mfu"] == pytest.approx(
        record["model_flops_per_step"] / (1e-3 * 8 * 197e12), rel=1e-3
    )
    assert record["device_hours"] == pytest.approx(20 * 1e-3 * 8 / 3600, rel=1e-3)
    print_plan(plan, config)
    printed = capsys.readouterr().out
    assert "align_tiny on v5e:2x4, mesh data 8 x fsdp 1 x tensor 1" in printed
    assert "the time leaves out what the compiler can't estimate: kernel.1\n" in printed
    assert "does not fit" not in printed


@pytest.mark.slow
def test_a_plan_that_does_not_fit_lists_the_largest_tensors(compiled, config, capsys):
    largest = tuple(Tensor(size * 2**30, f"f32[{size}]", f"jvp(Bert)/layer{size}") for size in (9, 8, 7))
    make_plan = compiled(Program("", 2**30, 40 * 2**30, 41 * 2**30, False, largest, 3.2))
    plan = make_plan(config, V5E, jax.devices())
    assert list(plan.record) == KEYS
    assert plan.record["fits"] is False
    assert plan.record["peak_bytes_per_device"] == 41 * 2**30
    assert plan.record["estimated_step_seconds"] is plan.record["unestimated_operations"] is None
    print_plan(plan, config)
    printed = capsys.readouterr().out
    assert "does not fit: it takes 41.00 GiB of 15.75 GiB a device; the largest tensors:\n" in printed
    assert "  9.00 GiB  f32[9]  jvp(Bert)/layer9\n  8.00 GiB  f32[8]  jvp(Bert)/layer8\n" in printed


def test_a_state_larger_than_the_memory_is_not_compiled(compiled, config, monkeypatch, capsys):
    make_plan, small = compiled(None), hardware.chip("TPU v5 lite")._replace(hbm=2**20)
    monkeypatch.setattr(planner.hardware, "chip", lambda kind: small)
    plan = make_plan(config, V5E, jax.devices())
    assert plan.record["fits"] is False
    assert plan.record["temp_bytes"] is plan.record["compile_seconds"] is None
    print_plan(plan, config)
    assert "the state and the batch alone take" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mesh=dict(data=3, fsdp=1, tensor=1)), "mesh: .* does not divide 8 devices"),
        (
            dict(batch_size=12),
            "streams.pairs.batch_size is 12; it must be a multiple of data x fsdp x grad_accum = 8 x 1",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_an_error_before_compilation(compiled, config, change, message):
    if "mesh" in change:
        config["mesh"] = change["mesh"]
    else:
        config["streams"]["pairs"]["batch_size"] = change["batch_size"]
    with pytest.raises(RequirementsError, match=message):
        compiled(None)(config, V5E, jax.devices())


def test_only_the_data_axis_spans_slices():
    def device(i):
        return types.SimpleNamespace(
            id=i, slice_index=i // 4, platform="tpu", device_kind="made up", process_index=i // 4
        )

    devices = [device(i) for i in range(8)]
    with pytest.raises(ValueError, match="mesh: data is 1; it must be a multiple of the 2 TPU slices"):
        mesh_lib.make_mesh(dict(data=-1, fsdp=8, tensor=1), devices)
