"""One training step of CLIP ViT-B/32 on CPU: ours against transformers' CLIPModel with PyTorch's AdamW.

    python -m benchmarks.clip_step [--batch=32] [--steps=5] [--json=FILE]

Forward, symmetric contrastive loss, backward and update, float32, ours through the real training step.
Both start from the same weights, and their first losses must agree; then they take turns in this
process, so that a slow spell of the machine meets both. Seconds of all its cores are told beside
seconds of the clock, since only they stay comparable where others use the machine. A ratio above 1
means that ours is the faster. Needs PyTorch and transformers, which `make parity` installs, and 6 GB.
"""

import json
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax.traverse_util import unflatten_dict

from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import flops
from big_ssl.training.setup import set_up
from big_ssl.weights.formats import read_checkpoint
from configs import clip_vitb32

try:
    import torch
    import transformers
except ImportError:
    sys.exit("clip_step compares with PyTorch and transformers: `make parity` installs both")

IMAGE_SIZE, LENGTH, VOCABULARY = 224, 77, 49_408
# [tokens, in] x [in, out] of one layer's first product in the image tower's MLP.
PRODUCT = (50, 768, 3072)

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


def make_theirs(model, config, batch):
    """() -> loss of a step taken, of transformers' CLIPModel; its images come normalised already."""
    settings, view = config["optimizer"], config["views"]["image"]
    scaled = (batch["image"] / 255 - np.asarray(view["mean"])) / np.asarray(view["std"])
    inputs = dict(
        pixel_values=torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32).contiguous(),
        input_ids=torch.tensor(batch["text"]["ids"]).long(),
    )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=2.5e-7,  # ours after the first step of its warm-up
        betas=(settings["b1"], settings["b2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )

    def step():
        optimizer.zero_grad()
        loss = model(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        return loss.item()

    return step


def take_turns(steps: dict, count: int) -> dict:
    """{name: float64[count, 2]}, each step's seconds by the clock and of all cores."""
    times = {name: [] for name in steps}
    for _ in range(count):
        for name, step in steps.items():
            began = _clocks()
            step()
            times[name].append(_clocks() - began)
    return {name: np.array(taken) for name, taken in times.items()}


def _clocks():
    return np.array([time.perf_counter(), time.process_time()])


def product_rates(batch: int, rounds: int = 20) -> dict:
    """{name: FLOP a core's second of one large product of the step by itself}, the best of several."""
    rng, (tokens, inner, outer) = np.random.default_rng(0), PRODUCT
    left = rng.normal(size=(batch * tokens, inner)).astype(np.float32)
    right = rng.normal(size=(inner, outer)).astype(np.float32)
    product, ours, theirs = jax.jit(jnp.matmul), (left, right), (torch.tensor(left), torch.tensor(right))
    ours = jax.device_put(ours)
    runs = dict(ours=lambda: jax.block_until_ready(product(*ours)), theirs=lambda: torch.matmul(*theirs))
    taken = take_turns(runs, rounds)
    return {name: 2 * left.size * outer / seconds[:, 1].min() for name, seconds in taken.items()}


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
    transformers.utils.logging.disable_progress_bar()
    config = clip_config(_BATCH.value)
    batch = random_pairs(_BATCH.value)
    model = transformers.CLIPModel(transformers.CLIPConfig()).train()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours, count = make_ours(config, batch, folder)
    steps = dict(ours=ours, theirs=make_theirs(model, config, batch))
    losses = {name: step() for name, step in steps.items()}
    print(f"first losses: {losses}")
    if abs(losses["ours"] - losses["theirs"]) > 1e-3:
        sys.exit("the first losses differ: this would compare two different models")
    times = take_turns(steps, _STEPS.value)
    found = report(times, product_rates(_BATCH.value), count)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    app.run(main)
