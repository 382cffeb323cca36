"""Prints a plan as a table; if the step does not fit, also the reason and changes that would help."""

from collections.abc import Mapping

import rich.console
import rich.table

from big_ssl.planning.advice import advice
from big_ssl.planning.planner import Plan

console = rich.console.Console(highlight=False, soft_wrap=True)


def print_plan(plan: Plan, config: Mapping) -> None:
    """Prints the table; if the step does not fit, also its largest tensors and `advice`."""
    record = plan.record
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.setup.mesh.shape.items())
    table = rich.table.Table(title=f"{config['name']} on {record['topology']}, mesh {mesh}")
    table.add_column("per step, unless stated otherwise")
    table.add_column("", justify="right")
    for name, value in _rows(record):
        table.add_row(name, value)
    console.print(table)
    if plan.unknown_loops:
        console.print(f"{plan.unknown_loops} loops of unknown trip count are counted once")
    if record["unestimated_operations"]:
        names = ", ".join(record["unestimated_operations"])
        console.print(f"the time leaves out what the compiler can't estimate: {names}", markup=False)
    if record["fits"]:
        return
    console.print(f"[bold]does not fit[/bold]: {_why(record)}")
    for tensor in plan.program.largest if plan.program else ():
        console.print(f"  {memory(tensor.size)}  {tensor.shape}  {tensor.source}", markup=False)
    for line in advice(plan, config):
        console.print(f"  - {line}", markup=False)


def memory(size) -> str:
    """Formats bytes in GiB, or in MiB below 1 GiB; "?" for None."""
    if size is None:
        return "?"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _why(record):
    limit = memory(record["hbm_limit_bytes"])
    if record["temp_bytes"] is None:
        return f"the state and the batch alone take {memory(record['argument_bytes'])} of {limit} a device"
    return f"it takes {memory(record['peak_bytes_per_device'])} of {limit} a device; the largest tensors:"


def _rows(record):
    """Yields (name, value) of every row."""
    fraction = record["peak_bytes_per_device"] and record["peak_bytes_per_device"] / record["hbm_limit_bytes"]
    yield "devices", f"{record['devices']:,}"
    yield "parameters", f"{record['params']:,}"
    yield "global batch", f"{record['global_batch']:,}"
    yield "HBM: arguments a device", memory(record["argument_bytes"])
    yield "HBM: temporaries a device", memory(record["temp_bytes"])
    peak = memory(record["peak_bytes_per_device"]) + (f" ({fraction:.0%})" if fraction else "")
    yield "HBM: peak a device", f"{peak} of {memory(record['hbm_limit_bytes'])}"
    yield "fits", "yes" if record["fits"] else "NO"
    yield "model FLOPs", _count(record["model_flops_per_step"])
    yield "compiled FLOPs", _count(record["compiled_flops_per_step"])
    for kind, size in (record["collective_bytes_per_step"] or {}).items():
        yield f"{kind} a device", memory(size)
    yield "estimated time", _or_unknown(record["estimated_step_seconds"], "{:.4g} s")
    yield "estimated MFU", _or_unknown(record["estimated_mfu"], "{:.1%}")
    yield "steps in the run", f"{record['total_steps']:,}"
    yield "device hours of the run", _or_unknown(record["device_hours"], "{:,.1f}")
    yield "compilation took", _or_unknown(record["compile_seconds"], "{:.0f} s")


def _count(value):
    return _or_unknown(value, "{:.3e}")


def _or_unknown(value, template):
    return "?" if value is None else template.format(value)
