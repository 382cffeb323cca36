"""One training step of DINOv2's ViT-S/14 on CPU: ours against PyTorch's, around transformers' Dinov2Model.

    python -m benchmarks.dinov2_step [--batch=4] [--steps=5] [--json=FILE]

Two large crops of 224 pixels, half of them masked, and eight of 98; student, teacher, one head of 8,192
prototypes, the three terms, backward, AdamW and the average, float32, ours through the real training step.
tests/parity/test_dinov2_step.py shows the two to be one computation. Both start from the same weights, crops
and masks, and their first losses must agree; then they take turns (benchmarks/turns.py). Ours draws its masks
in the step, PyTorch's keeps the first ones; colours are left as they are. A ratio above 1 means that ours is
the faster. Needs PyTorch and transformers, which `make parity` installs, and 6 GB.
"""

import importlib.util
import json
import sys
import tempfile

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from benchmarks import dinov2_ours, dinov2_peer, turns
from big_ssl.models import vit
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import batches, flops
from big_ssl.training.setup import set_up
from configs import dinov2

_BATCH = flags.DEFINE_integer("batch", 4, "Pictures a step.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of each to time.")
_JSON = flags.DEFINE_string("json", None, "Writes what is printed to this file.")

TOWER = dict(vit.VARIANTS["S/14"], image_size=224)
HEAD = dict(prototypes=8_192, hidden=2_048, bottleneck=256)
# Of a large crop.
TOKENS = 1 + (224 // 14) ** 2


def step_config(batch: int) -> dict:
    """The short recipe of configs/dinov2.py for the small tower; in float32 and with its layers apart, as is
    best on a CPU, and without skipped branches, of which transformers' model has another kind."""
    config = dinov2.get_config("vitl16_short").to_dict()
    images = config["streams"]["images"]
    images.update(batch_size=batch)
    fields = images["data"]["fields"]
    fields["local_crops"]["crop"].update(size=98)
    images["objectives"]["dino"].update(head=dict(HEAD, layers=3, norm_last_layer=False))
    images["objectives"]["koleo"].update(koleo_group=batch)
    for name, options in fields.items():
        kept = ("kind", "crop", "mean", "std", "mask")
        fields[name] = {key: options[key] for key in kept if key in options}
    fields["global_crops"]["mask"].update(grid=16, mask_group=batch)
    config["encoders"]["image"].update(
        **TOWER, drop_path=0.0, drop_path_groups=1, position_resize="bicubic", scan=False
    )
    lr_multipliers = tuple(rule for rule in config["lr_multipliers"] if rule[0] == "encoders/")
    return config | dict(dtype="float32", remat="none", lr_multipliers=lr_multipliers)


def make_ours(config, setup, batch, folder):
    """() -> loss of a step taken, from the weights in folder."""
    weights = dinov2_ours.read(folder)[1]
    state = dinov2_ours.state_of(setup, weights, weights)

    def step():
        nonlocal state
        state, metrics = setup.step(state, batch)
        return float(metrics["loss"])

    return step


def compare(batch: int, steps: int) -> dict:
    """What turns.compare returns."""
    config = step_config(batch)
    setup = set_up(config, jax.devices()[:1])
    crops = dinov2_ours.random_batch(batches.abstract_global_batch(config, None))
    given = mesh_lib.global_batch(setup.mesh, crops)
    count = flops.model_flops_per_step(setup.system, setup.abstract_state, given)
    seen = dinov2_ours.seer(setup, config["seed"])(given, 0)
    numbers, recipe = dinov2_ours.numbers(config, 0), dinov2_ours.recipe(config)
    shapes = (2 * batch * TOKENS, TOWER["width"]), (TOWER["width"], 4 * TOWER["width"])
    product, matrices = jax.jit(jnp.matmul), [jnp.ones(shape) for shape in shapes]
    work = 2 * shapes[0][0] * shapes[1][0] * shapes[1][1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = folder, TOWER, HEAD, seen, recipe, numbers, shapes
        with turns.peer(dinov2_peer.serve, *arguments) as ask:
            step = make_ours(config, setup, given, folder)
            own = dict(step=step, product=lambda: product(*matrices).block_until_ready())
            return turns.compare(own, ask, steps, count, work)


def main(argv) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        sys.exit("dinov2_step compares with PyTorch and transformers: `make parity` installs both")
    found = compare(_BATCH.value, _STEPS.value)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    app.run(main)
