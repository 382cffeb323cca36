"""Memory and time of the softmax contrastive loss, forward and backward, in its three forms.

    python -m benchmarks.contrastive_memory [--batches=8192,32768,131072] [--json=FILE]

Bytes are the compiled program's temporary buffers on each of eight devices (simulated on this CPU),
for 512-dimensional float32 embeddings. Times are the median of interleaved runs and are taken up to
--timed_batch only; a ratio below 1 in the last column means that the ring is the faster.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from big_ssl.losses.contrastive import softmax_contrastive
from big_ssl.losses.pairwise import IMPLEMENTATIONS, Pairwise
from big_ssl.parallel.mesh import batch_sharding, make_mesh

DEVICES, DIM, ROUNDS = 8, 512, 5

_BATCHES = flags.DEFINE_list("batches", ["8192", "32768", "131072"], "Global batch sizes.")
_TIMED = flags.DEFINE_integer("timed_batch", 8192, "The largest batch that is also run.")
_JSON = flags.DEFINE_string("json", None, "Writes the rows to this file.")


def compile_loss(implementation, batch, mesh):
    """(compiled gradient, its arguments' shapes) at one batch size."""
    pairwise = Pairwise(implementation, mesh)

    def loss(image, text, temperature):
        return softmax_contrastive(image, text, temperature, 0.1, pairwise=pairwise)[0]

    sharding = batch_sharding(mesh)
    embeddings = jax.ShapeDtypeStruct((batch, DIM), jnp.float32, sharding=sharding)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(None, (sharding, sharding, None)))
    return gradient.lower(embeddings, embeddings, jax.ShapeDtypeStruct((), jnp.float32)).compile()


def random_pairs(batch, mesh):
    """Image and text embeddings of length one, split over the mesh."""
    for seed in range(2):
        x = jax.random.normal(jax.random.key(seed), (batch, DIM))
        yield jax.device_put(x / jnp.linalg.norm(x, axis=1, keepdims=True), batch_sharding(mesh))


def seconds(programs, batch, mesh):
    """{implementation: median seconds}, the forms taking turns so that noise meets all of them."""
    arguments = (*random_pairs(batch, mesh), jnp.float32(0.07))
    times = {implementation: [] for implementation in programs}
    for _ in track(range(ROUNDS), f"timing {batch:,}", transient=True):
        for implementation, program in programs.items():
            jax.block_until_ready(program(*arguments))
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[implementation].append(time.perf_counter() - began)
    return {implementation: statistics.median(taken) for implementation, taken in times.items()}


def measure(batch, mesh):
    """One row for each implementation."""
    programs = {
        implementation: compile_loss(implementation, batch, mesh) for implementation in IMPLEMENTATIONS
    }
    timed = batch <= _TIMED.value
    taken = seconds(programs, batch, mesh) if timed else dict.fromkeys(programs)
    return [
        dict(
            implementation=implementation,
            batch=batch,
            devices=DEVICES,
            temp_bytes_per_device=program.memory_analysis().temp_size_in_bytes,
            seconds=taken[implementation],
        )
        for implementation, program in programs.items()
    ]


def print_rows(rows):
    """The table that docs/performance.md quotes."""
    table = Table("batch", "implementation", "temp GB a device", "seconds", "ring / this implementation")
    ring = {row["batch"]: row for row in rows if row["implementation"] == "ring"}
    for row in rows:
        own, best = row["seconds"], ring[row["batch"]]["seconds"]
        timing = ("", "") if own is None else (f"{own:.2f}", f"{best / own:.2f}")
        table.add_row(
            f"{row['batch']:,}", row["implementation"], f"{row['temp_bytes_per_device'] / 1e9:.3f}", *timing
        )
    Console().print(table)


def main(argv):
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1))
    rows = [row for batch in map(int, _BATCHES.value) for row in measure(batch, mesh)]
    print_rows(rows)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    app.run(main)
