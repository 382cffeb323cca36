"""Starting from weights: config.init_from.

path: a folder that `python -m big_ssl.convert` wrote, or that another run trained in. skip: patterns of
the paths ("encoders/text/", "heads/") that start from scratch all the same. copy: pairs of a pattern and
what takes its place in a path: the arrays fill that place too, so that a run's tower can be a teacher's;
with a third, a folder, they are that folder's arrays, so that each tower can come from elsewhere.
Position tables of another image size are resized, BERT's of longer texts cut. Encoders and heads are
filled whole or skipped whole, but for single skipped paths.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from big_ssl import io
from big_ssl.models.encoder import Encoder
from big_ssl.models.layer_layouts import stack_layers
from big_ssl.training import build, requirements, trained
from big_ssl.training import state as state_lib
from big_ssl.weights import formats


def read(config: Mapping, abstract_state: state_lib.TrainState):
    """{"params", "encoders"} as state.averaged, of arrays where weights are given and None where a value
    starts from scratch; None where config.init_from has no path.

    Raises requirements.RequirementsError that names what does not fit.
    """
    path, skip, copies = (config["init_from"][key] for key in ("path", "skip", "copy"))
    if not path:
        return None
    modules = build.encoder_modules(config)
    wanted = state_lib.averaged(abstract_state.params, abstract_state.mutable)
    try:
        given = _restacked(_copied(_read(path), copies), modules)
        given = flatten_dict(given, sep="/")
        # A tower without running statistics has an empty node, which must stay.
        wanted = flatten_dict(wanted, keep_empty_nodes=True, sep="/")
        return _matched(given, wanted, skip, modules)
    except (ValueError, OSError) as error:
        raise requirements.RequirementsError(f"init_from: {error}") from error


def replace(state: state_lib.TrainState, given) -> state_lib.TrainState:
    """The state with what `read` gave in it, placed as the state is; its average starts there too."""
    if given is None:
        return state
    old = state_lib.averaged(state.params, state.mutable)
    new = jax.tree.map(
        lambda x, y: x if y is None else placed(np.asarray(y, x.dtype), x.sharding),
        old,
        given,
        is_leaf=lambda x: x is None,
    )
    ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, state_lib.restricted(new, state.ema))
    mutable = state.mutable | dict(encoders=new["encoders"])
    return state.replace(params=new["params"], mutable=mutable, ema=ema)


def placed(array: np.ndarray, sharding) -> jax.Array:
    """An array that every host has whole, on the devices of a sharding.

    Not by device_put, which has all hosts compare what they place, and holds it whole on a device.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _read(path):
    folder = io.as_path(path)
    if (folder / "checkpoints").exists():
        return trained.load(folder)[1]
    return unflatten_dict(formats.read_checkpoint("big_ssl", folder)[1], sep="/")


def _copied(given, rules):
    """The tree with arrays of its own, or of the folder that a rule names, under another path besides."""
    found = flatten_dict(given, keep_empty_nodes=True, sep="/")
    for pattern, place, *folder in rules:
        source = flatten_dict(_read(*folder), keep_empty_nodes=True, sep="/") if folder else found
        matched = {re.sub(pattern, place, name): x for name, x in source.items() if re.search(pattern, name)}
        if not matched:
            origin = folder[0] if folder else "path"
            raise ValueError(f"the weights of {origin} have nothing for copy's {pattern!r}")
        found |= matched
    return unflatten_dict(found, sep="/")


def _restacked(given, modules):
    """Layers in stacks for the encoders that are scanned here; in weights they are apart."""
    for name, encoder in modules.items():
        if getattr(encoder, "scan", False) and name in given["params"]["encoders"]:
            params = stack_layers(given["params"]["encoders"][name], encoder.stacks)
            given["params"]["encoders"][name] = params
            for collection, tree in given.get("encoders", {}).get(name, {}).items():
                given["encoders"][name][collection] = stack_layers(tree, encoder.stacks)
    return given


def _matched(given, wanted, skip, modules):
    """Returns the source arrays in the target's structure; None where excluded."""
    skipped = re.compile("|".join(f"(?:{p})" for p in skip)) if skip else None
    found = {}
    for name, leaf in wanted.items():
        if leaf is empty_node:
            found[name] = leaf
        elif skipped and skipped.search(name):
            found[name] = None
        elif name not in given:
            raise ValueError(f"the weights have no {name}; skip=({module(name)!r},) starts it from scratch")
        else:
            found[name] = fitted(name, given[name], leaf.shape, modules)
    filled = {module(name) for name, value in found.items() if isinstance(value, np.ndarray)}
    for name in given:
        if name not in wanted and module(name) in filled:
            raise ValueError(f"{name} of the weights has no place in this model")
    return unflatten_dict(found, sep="/")


def module(name):
    """ "params/encoders/image/..." -> "params/encoders/image/": a whole encoder or head."""
    return "/".join(name.split("/")[: 3 if name.startswith("params/") else 2]) + "/"


def fitted(name: str, array, shape: tuple[int, ...], modules: Mapping[str, Encoder]) -> np.ndarray:
    """An array of another model, as a parameter of this one.

    Args:
      name: its path, such as "params/encoders/image/position_embedding".
      array: its value there.
      shape: its shape here. An array of another shape is resized by its encoder's resize_params.
      modules: {name: encoder}.

    Returns:
      The array of that shape. Raises ValueError if there is no way to resize it.
    """
    array = np.asarray(array)
    if array.shape == shape:
        return array
    place = re.fullmatch(r"params/encoders/([^/]+)/(.+)", name)
    if place and place[1] in modules:
        resized = modules[place[1]].resize_params(place[2], array, shape)
        if resized is not None:
            return resized
    raise ValueError(f"{name} is {list(array.shape)} in the weights and {list(shape)} in this model")
