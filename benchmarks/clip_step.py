"""One training step of CLIP ViT-B/32 on CPU: ours against transformers' CLIPModel with PyTorch's AdamW.

    python -m benchmarks.clip_step [--batch=32] [--steps=5] [--json=FILE]

Forward, symmetric contrastive loss, backward and update, float32, ours through the real training step.
Both start from the same weights, and their first losses must agree; then they take turns
(benchmarks/turns.py). A ratio above 1 means that ours is the faster. Needs PyTorch and transformers, which
`make parity` installs, and 8 GB.
"""

import importlib.util
import json
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax.traverse_util import unflatten_dict

from benchmarks import clip_peer, turns
from big_ssl.data import pipeline
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import build, flops
from big_ssl.training.setup import set_up
from big_ssl.weights.formats import read_checkpoint
from configs import clip

IMAGE_SIZE, LENGTH, VOCABULARY = 224, 77, 49_408
# The first product of an MLP in the image tower: an image's tokens, in, out.
TOKENS, WIDTH, INNER = 50, 768, 3072

_BATCH = flags.DEFINE_integer("batch", 32, "Pairs a step.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of each to time.")
_JSON = flags.DEFINE_string("json", None, "Writes what is printed to this file.")


def clip_config(batch: int) -> dict:
    """The recipe of configs/clip.py, in float32 and with its layers apart, as is best on a CPU."""
    config = clip.get_config().to_dict()
    config.update(dtype="float32", remat="none")
    config["tokenizer"].update(vocabulary="")  # none is needed for random words
    config["streams"]["pairs"]["batch_size"] = batch
    for tower in config["encoders"].values():
        tower.update(scan=False)
    return config


def random_pairs(config: dict, batch: int) -> dict:
    """A batch of random pixels and words; the end of text, the largest id, last and nowhere else."""
    rng, fields = np.random.default_rng(0), build.stream_fields("pairs", config)
    ids = rng.integers(1, VOCABULARY - 1, (batch, LENGTH), dtype=np.int32)
    ids[:, -1] = VOCABULARY - 1
    return dict(
        image=rng.integers(0, 256, (batch, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8),
        text=dict(ids=ids, mask=np.ones(ids.shape, bool)),
        data_errors={name: np.zeros(batch, bool) for name in pipeline.data_errors(fields)},
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


def main(argv) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        sys.exit("clip_step compares with PyTorch and transformers: `make parity` installs both")
    config = clip_config(_BATCH.value)
    batch = random_pairs(config, _BATCH.value)
    shapes = (_BATCH.value * TOKENS, WIDTH), (WIDTH, INNER)
    work = 2 * _BATCH.value * TOKENS * WIDTH * INNER
    with tempfile.TemporaryDirectory() as folder:
        arguments = folder, batch, config["optimizer"], config["eval_transform"], shapes
        with turns.peer(clip_peer.serve, *arguments) as ask:
            step, count = make_ours(config, batch, folder)
            product, matrices = jax.jit(jnp.matmul), [jnp.ones(shape) for shape in shapes]
            own = dict(step=step, product=lambda: product(*matrices).block_until_ready())
            found = turns.compare(own, ask, _STEPS.value, count, work)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    app.run(main)
