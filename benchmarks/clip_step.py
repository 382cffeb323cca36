"""One training step of CLIP ViT-B/32 on CPU: ours against transformers' CLIPModel with PyTorch's AdamW.

    python -m benchmarks.clip_step [--batch=32] [--steps=5] [--json=FILE]

Forward, symmetric contrastive loss, backward and update, float32, ours through the real training step.
Both start from the same weights, and their first losses must agree; then they take turns, each in a
process of its own, so that a slow spell of the machine meets both. Seconds of all cores are told beside
seconds of the clock, since only they stay comparable where others use the machine. A ratio above 1
means that ours is the faster. Needs PyTorch and transformers, which `make parity` installs, and 8 GB.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax.traverse_util import unflatten_dict

from benchmarks import clip_peer
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import flops
from big_ssl.training.setup import set_up
from big_ssl.weights.formats import read_checkpoint
from configs import clip_vitb32

IMAGE_SIZE, LENGTH, VOCABULARY = 224, 77, 49_408
# The first product of an MLP in the image tower: an image's tokens, in, out.
TOKENS, WIDTH, INNER = 50, 768, 3072

_BATCH = flags.DEFINE_integer("batch", 32, "Pairs a step.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of each to time.")
_JSON = flags.DEFINE_string("json", None, "Writes what is printed to this file.")


def clip_config(batch: int) -> dict:
    """The recipe of configs/clip_vitb32.py, in float32 and with its layers apart, as is best on a CPU."""
    config = clip_vitb32.get_config().to_dict()
    config.update(dtype="float32", remat="none")
    config["tokenizer"].update(vocabulary="")  # none is needed for random words
    config["streams"]["pairs"]["batch_size"] = batch
    for tower in config["encoders"].values():
        tower.update(scan=False)
    return config


def random_pairs(batch: int) -> dict:
    """A batch of random pixels and words; the end of text, the largest id, last and nowhere else."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCABULARY - 1, (batch, LENGTH), dtype=np.int32)
    ids[:, -1] = VOCABULARY - 1
    return dict(
        image=rng.integers(0, 256, (batch, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8),
        text=dict(ids=ids, mask=np.ones(ids.shape, bool)),
        faults=dict(replaced_images=np.zeros(batch, bool), replaced_texts=np.zeros(batch, bool)),
    )


def make_ours(config, batch, weights):
    """(() -> loss of a step taken, FLOPs of a step). weights: a folder in hf_clip's format."""
    setup = set_up(config, jax.devices()[:1])
    _, ours = read_checkpoint("hf_clip", weights)
    params = unflatten_dict({name.removeprefix("params/"): x for name, x in ours.items()}, sep="/")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state.params)
    state = setup.init().replace(params=jax.device_put(params, shardings))
    batch = mesh_lib.global_batch(setup.mesh, dict(pairs=batch))
    count = flops.model_flops_per_step(setup.system, setup.abstract_state, batch)

    def step():
        nonlocal state
        state, metrics = setup.step(state, batch)
        return float(metrics["loss"])

    return step, count


@contextlib.contextmanager
def peer(*arguments):
    """PyTorch's process, as a function of a task; arguments: as clip_peer.serve has them, but the first."""
    # Waiting threads that spin would count as work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=clip_peer.serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()  # so that its end is seen here, should it fail

    def ask(task):
        here.send(task)
        return here.recv()

    here.recv()
    yield ask
    here.send(None)
    process.join()


def take_turns(tasks: dict, count: int) -> dict:
    """{name: float64[count, 2]}, seconds by the clock and of all cores; tasks: as clip_peer.timed."""
    times = {name: [] for name in tasks}
    for _ in range(count):
        for name, task in tasks.items():
            times[name].append(task()[0])
    return {name: np.array(taken) for name, taken in times.items()}


def report(times, rates, count) -> dict:
    """Prints the figures, and returns them."""
    found = dict(flops=count)
    print(f"{count / 1e9:.0f} GFLOP a step in matrix products")
    for name, taken in times.items():
        clock, cores = np.median(taken, 0)
        share = count / rates[name] / cores
        found[name] = dict(seconds=taken.tolist(), product_rate=rates[name], share=share)
        print(
            f"{name:>6}: {_spread(taken[:, 0])} s by the clock, {count / clock / 1e9:.0f} GFLOP/s; "
            f"{_spread(taken[:, 1])} s of cores, {count / cores / 1e9:.0f} GFLOP a second of each; a lone "
            f"product {rates[name] / 1e9:.0f}, at which the products are {share:.0%} of the step"
        )
    ratios = times["theirs"] / times["ours"]
    for column, what in enumerate(("by the clock", "of cores")):
        found[f"ratios {what}"] = ratios[:, column].tolist()
        print(f"theirs / ours, {what}: {_spread(ratios[:, column])}")
    return found


def _spread(values):
    return f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"


def main(argv) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        sys.exit("clip_step compares with PyTorch and transformers: `make parity` installs both")
    config, batch = clip_config(_BATCH.value), random_pairs(_BATCH.value)
    shapes = (_BATCH.value * TOKENS, WIDTH), (WIDTH, INNER)
    with tempfile.TemporaryDirectory() as folder:
        arguments = folder, batch, config["optimizer"], config["views"]["image"], shapes
        with peer(*arguments) as ask:
            step, count = make_ours(config, batch, folder)
            product, matrices = jax.jit(jnp.matmul), [jnp.ones(shape) for shape in shapes]
            steps = dict(ours=lambda: clip_peer.timed(step), theirs=lambda: ask("step"))
            check_losses({name: task()[1] for name, task in steps.items()})
            times = take_turns(steps, _STEPS.value)
            products = dict(
                ours=lambda: clip_peer.timed(lambda: product(*matrices).block_until_ready()),
                theirs=lambda: ask("product"),
            )
            seconds = {name: taken[:, 1].min() for name, taken in take_turns(products, 20).items()}
    work = 2 * _BATCH.value * TOKENS * WIDTH * INNER
    found = report(times, {name: work / taken for name, taken in seconds.items()}, count)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(found, file, indent=2)


def check_losses(losses: dict) -> None:
    """Exits where the two models, of the same weights, do not agree."""
    print(f"first losses: {losses}")
    if abs(losses["ours"] - losses["theirs"]) > 1e-3:
        sys.exit("the first losses differ: this would compare two different models")


if __name__ == "__main__":
    app.run(main)
