"""Changes that would make a step fit into memory."""

import math
from collections.abc import Iterator, Mapping

from big_ssl.planning.planner import Plan
from big_ssl.planning.program import state_bytes


def advice(plan: Plan, config: Mapping) -> Iterator[str]:
    """Yields changes, as flags, from the least to the most loss of speed.

    Assumes that temporaries are proportional to the examples per device, which is nearly true for
    activations: such numbers say "about", until they are planned.
    """
    record, mesh = plan.record, plan.setup.mesh
    limit, temporaries = record["hbm_limit_bytes"], record["temp_bytes"] or 0
    room = limit - record["argument_bytes"]
    yield from _more_fsdp(plan, limit - temporaries, config.get("sharding", ()))
    if config.get("remat", "full") != "full":
        yield "--config.remat=full recomputes each block in the backward pass instead of keeping it"
    if room > 0 and temporaries:
        factor = temporaries / room
        yield from _fewer_examples(config, factor, mesh.shape["data"] * mesh.shape["fsdp"])
        yield f"about {math.ceil(record['devices'] * factor):,} devices or more, with the same batch"
    elif room <= 0:
        yield "a chip with more memory, or more of them to split the state over (config.mesh.fsdp)"


def fsdp_sizes(devices: int, tensor: int, slices: int) -> list[int]:
    """The fsdp sizes a topology allows: powers of two that stay inside one slice."""
    per_slice = devices // tensor // slices
    return [2**i for i in range(per_slice.bit_length()) if per_slice % 2**i == 0]


def slices_of(mesh) -> int:
    """The number of TPU slices that a mesh spans."""
    return len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})


def mesh_sizes(devices: int, tensor: int, fsdp: int) -> dict[str, int]:
    """All mesh sizes for one fsdp size."""
    return dict(data=devices // tensor // fsdp, fsdp=fsdp, tensor=tensor)


def _more_fsdp(plan, room, overrides):
    """room: bytes available for the arguments."""
    state, mesh = plan.setup.abstract_state, plan.setup.mesh
    current, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    batch = plan.record["argument_bytes"] - state_bytes(state, mesh.shape, overrides)
    for fsdp in fsdp_sizes(mesh.size, tensor, slices_of(mesh)):
        size = state_bytes(state, mesh_sizes(mesh.size, tensor, fsdp), overrides)
        if fsdp > current and size is not None and size + batch <= room:
            yield f"--config.mesh.fsdp={fsdp} shrinks a device's part of the state to {size / 2**30:.2f} GiB"
            return


def _fewer_examples(config, factor, num_shards):
    """Fewer examples at a time: by gradient accumulation, or in a smaller batch."""
    for name, stream in config["streams"].items():
        local = stream["batch_size"] // num_shards
        if "grad_accum" in config:
            parts = config["grad_accum"] * 2 ** math.ceil(math.log2(factor))
            if local % parts == 0:
                yield f"--config.grad_accum={parts} runs about {local // parts} examples a device at a time"
        if fitting := int(local / factor):
            yield f"--config.streams.{name}.batch_size={fitting * num_shards:,}".replace(",", "_") + ", about"
