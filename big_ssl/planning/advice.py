"""What would make a step fit that does not."""

import math
from collections.abc import Iterator, Mapping

from big_ssl.planning.planner import Plan
from big_ssl.planning.program import state_bytes


def advice(plan: Plan, config: Mapping) -> Iterator[str]:
    """Yields changes, as flags, the cheapest in speed first.

    Temporaries are taken to shrink with the examples a device has at a time, which is nearly so
    for activations: "about", until it is planned again.
    """
    record, mesh = plan.record, plan.setup.mesh
    limit, temporaries = record["hbm_limit_bytes"], record["temp_bytes"] or 0
    room = limit - record["argument_bytes"]
    yield from _more_fsdp(plan, limit - temporaries, config.get("sharding", ()))
    if config.get("remat", "full") != "full":
        yield "--config.remat=full recomputes each block in the backward pass instead of keeping it"
    if room > 0 and temporaries:
        factor = temporaries / room
        yield from _smaller_pieces(config, factor, mesh.shape["data"] * mesh.shape["fsdp"])
        yield f"about {math.ceil(record['devices'] * factor):,} devices or more, with the same batch"
    elif room <= 0:
        yield "a chip with more memory, or more of them to split the state over (config.mesh.fsdp)"


def fsdp_ways(devices: int, tensor: int, slices: int) -> list[int]:
    """The fsdp sizes a topology allows: powers of two that stay inside one slice."""
    inside = devices // tensor // slices
    return [2**i for i in range(inside.bit_length()) if inside % 2**i == 0]


def slices_of(mesh) -> int:
    """How many TPU slices a mesh spans."""
    return len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})


def mesh_sizes(devices: int, tensor: int, fsdp: int) -> dict[str, int]:
    """The whole mesh that goes with an fsdp size."""
    return dict(data=devices // tensor // fsdp, fsdp=fsdp, tensor=tensor)


def _more_fsdp(plan, room, overrides):
    """room: bytes there are for the arguments."""
    state, mesh = plan.setup.abstract_state, plan.setup.mesh
    now, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    batch = plan.record["argument_bytes"] - state_bytes(state, mesh.shape, overrides)
    for ways in fsdp_ways(mesh.size, tensor, slices_of(mesh)):
        held = state_bytes(state, mesh_sizes(mesh.size, tensor, ways), overrides)
        if ways > now and held is not None and held + batch <= room:
            yield f"--config.mesh.fsdp={ways} shrinks a device's part of the state to {held / 2**30:.2f} GiB"
            return


def _smaller_pieces(config, factor, ways):
    """Fewer examples at a time: in several passes a step, or in a smaller batch."""
    for name, stream in config["streams"].items():
        local = stream["batch_size"] // ways
        if "grad_accum" in config:
            parts = config["grad_accum"] * 2 ** math.ceil(math.log2(factor))
            if local % parts == 0:
                yield f"--config.grad_accum={parts} runs about {local // parts} examples a device at a time"
        if fitting := int(local / factor):
            yield f"--config.streams.{name}.batch_size={fitting * ways:,}".replace(",", "_") + ", about"
