"""Our side of a comparison with benchmarks/dinov2_torch.py: the same weights, crops, masks and numbers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from big_ssl.random_keys import step_key
from big_ssl.training import schedules
from big_ssl.weights import architecture, dino_heads, dinov2, rules
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.tensor_files import read_tensors


def read(folder) -> tuple[dict, dict]:
    """(ModelConfig, {path: float32 array}) of what dinov2_torch.save wrote."""
    config, ours = read_checkpoint("hf_dinov2", folder)
    heads = dino_heads.normalize_names(read_tensors(pathlib.Path(folder) / "heads.pth"))
    config |= dino_heads.options(heads, dinov2.HEADS)
    missing = {path: shape for path, shape in architecture.shapes(config).items() if path not in ours}
    return config, ours | rules.read(dino_heads.rules(config, dinov2.HEADS), (), heads, missing)


def state_of(setup, student, teacher, step: int = 0):
    """The state before a step, of these weights, {path: array}; moments and centers are zero."""
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), setup.abstract_state)

    def placed(params, weights):
        """The EMA lacks the objectives without parameters, which params has as empty dicts."""
        paths = flatten_dict(dict(params=params), keep_empty_nodes=True, sep="/")
        return unflatten_dict(paths | {name: jnp.array(x) for name, x in weights.items()}, sep="/")["params"]

    ema = zero.ema | dict(params=placed(zero.ema["params"], teacher))
    state = zero.replace(step=jnp.int32(step), params=placed(zero.params, student), ema=ema)
    # As a step leaves it: placed otherwise, its second call would compile again.
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state))


def seer(setup, seed: int):
    """f(batch, step) -> what the encoders see in that step: a batch of dinov2_torch's, in NumPy."""
    inputs = jax.jit(lambda batch, step: _by_view(setup.system, batch, step_key(seed, step)))

    def see(batch, step):
        found = jax.device_get(inputs(batch, step))
        crops = {view: given["images"].transpose(0, 1, 4, 2, 3) for view, given in found.items()}
        return crops | dict(mask=found["global_crops"]["mask"]["mask"])

    return see


def _by_view(system, batch, key):
    return {view: given for (_, view), given in system._view_inputs(batch, key, train=True).items()}


def recipe(config) -> dict:
    """A config's values of a dinov2_torch.Recipe; its lr_multipliers have layer-wise decay."""
    objectives, optimizer = config["streams"]["images"]["objectives"], config["optimizer"]
    by_layers = next(factor for pattern, factor in config["lr_multipliers"] if pattern == "encoders/")
    return dict(
        center_momentum=objectives["dino"]["centering"].get("momentum"),
        koleo_group=objectives["koleo"]["koleo_group"],
        layer_decay=by_layers["decay"],
        patch_rate=by_layers["patch_embedding"],
        betas=(optimizer["b1"], optimizer["b2"]),
        eps=optimizer["eps"],
    )


def numbers(config, step: int) -> dict:
    """A step's values of a dinov2_torch.Numbers."""
    given = dict(
        learning_rate=config["learning_rate"],
        weight_decay=config["optimizer"]["weight_decay"],
        teacher_temperature=config["streams"]["images"]["objectives"]["dino"]["teacher_temperature"],
        momentum=config["ema"],
    )
    return {name: float(schedules.build(x, config["total_steps"])(step)) for name, x in given.items()}


def random_batch(shapes) -> dict:
    """Random pixels in arrays of these shapes, and no data_errors."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: (
            np.zeros(x.shape, bool) if x.dtype == bool else rng.integers(0, 256, x.shape, dtype=x.dtype)
        ),
        shapes,
    )
