"""Starting from weights: config.init_from.

path: a folder that `python -m big_ssl.convert` wrote, or the working directory of another run. exclude:
patterns of paths ("encoders/text/", "heads/") that start from scratch nevertheless. remap: pairs of a pattern
and its replacement in a path: the arrays also fill the new path, so that a run's encoder can be a teacher;
with a third item, a folder, the arrays are read from there, so that encoders can come from several folders.
Position tables of another image size are resized, BERT's for longer texts are cut. An encoder or head is
either filled or excluded as a whole, except for single excluded paths.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import jax
import numpy as np
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from big_ssl import io
from big_ssl.models.encoder import Encoder
from big_ssl.models.layer_layouts import stack_layers
from big_ssl.training import build, requirements, trained
from big_ssl.training import state as state_lib
from big_ssl.weights import formats


def newest_steps(config: Mapping) -> dict[str, int]:
    """{path: the step of its newest checkpoint} for the runs that config.init_from reads.

    Hosts may see different ones of a run that is still training, so they agree on these before `read`.
    Raises requirements.RequirementsError if a run has not saved yet.
    """
    main, remap = (config["init_from"][key] for key in ("path", "remap"))
    paths = [path for path in (main, *(folder for _, _, *folders in remap for folder in folders)) if path]
    try:
        return {path: trained.newest_step(path) for path in paths if _is_run(path)}
    except OSError as error:
        raise requirements.RequirementsError(f"init_from: {error}") from error


def read(
    config: Mapping, abstract_state: state_lib.TrainState, steps: Mapping[str, int] = MappingProxyType({})
):
    """The weights that a run starts from.

    Args:
      config: the run's config.
      abstract_state: shapes and dtypes of the run's state.
      steps: {path of a run: the step of the checkpoint to read}; by default the newest.

    Returns:
      {"params", "encoders", "heads"} as state.averaged, with source arrays, and None for values that start
      from scratch; None if config.init_from has no path.

    Raises:
      RequirementsError: that names the array or path that does not fit.
    """
    path, exclude, remap = (config["init_from"][key] for key in ("path", "exclude", "remap"))
    if not path:
        return None
    modules = build.encoder_modules(config)
    target = state_lib.averaged(abstract_state.params, abstract_state.mutable)
    try:
        source = _restacked(_remapped(_read(path, steps), remap, steps), modules)
        source = flatten_dict(source, sep="/")
        # An encoder without running statistics has an empty node, which must stay.
        target = flatten_dict(target, keep_empty_nodes=True, sep="/")
        return _matched(source, target, exclude, modules)
    except (ValueError, OSError) as error:
        raise requirements.RequirementsError(f"init_from: {error}") from error


def replace(state: state_lib.TrainState, source) -> state_lib.TrainState:
    """The state with the arrays that `read` returned, with its shardings; the EMA starts there too."""
    if source is None:
        return state
    old = state_lib.averaged(state.params, state.mutable)
    new = jax.tree.map(
        lambda x, y: x if y is None else placed(np.asarray(y, x.dtype), x.sharding),
        old,
        source,
        is_leaf=lambda x: x is None,
    )
    ema = None if state.ema is None else jax.tree.map(jax.numpy.copy, state_lib.restricted(new, state.ema))
    statistics = {part: value for part, value in new.items() if part != "params"}
    return state.replace(params=new["params"], mutable=state.mutable | statistics, ema=ema)


def placed(array: np.ndarray, sharding) -> jax.Array:
    """An array that every host has in full, on the devices of a sharding.

    Not by device_put, which makes all hosts compare their arrays, and puts the full array on a device.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _is_run(path):
    return (io.as_path(path) / "checkpoints").exists()


def _read(path, steps):
    folder = io.as_path(path)
    if _is_run(path):
        return trained.load(folder, steps.get(path, 0))[1]
    return unflatten_dict(formats.read_checkpoint("big_ssl", folder)[1], sep="/")


def _remapped(source, rules, steps):
    """The tree; arrays that a rule matches are in it under their new path as well."""
    flat = flatten_dict(source, keep_empty_nodes=True, sep="/")
    for pattern, replacement, *folder in rules:
        other = flatten_dict(_read(*folder, steps), keep_empty_nodes=True, sep="/") if folder else flat
        matched = {re.sub(pattern, replacement, k): x for k, x in other.items() if re.search(pattern, k)}
        if not matched:
            origin = folder[0] if folder else "path"
            raise ValueError(f"the weights of {origin} have nothing for remap's {pattern!r}")
        flat |= matched
    return unflatten_dict(flat, sep="/")


def _restacked(source, modules):
    """Stacks the layers of the encoders that are scanned here; weights have separate layers."""
    for name, encoder in modules.items():
        if getattr(encoder, "scan", False) and name in source["params"]["encoders"]:
            params = stack_layers(source["params"]["encoders"][name], encoder.stacks)
            source["params"]["encoders"][name] = params
            for collection, tree in source.get("encoders", {}).get(name, {}).items():
                source["encoders"][name][collection] = stack_layers(tree, encoder.stacks)
    return source


def _matched(source, target, exclude, modules):
    """The source arrays in the target's structure; None where excluded."""
    excluded = re.compile("|".join(f"(?:{p})" for p in exclude)) if exclude else None
    matched = {}
    for name, leaf in target.items():
        if leaf is empty_node:
            matched[name] = leaf
        elif excluded and excluded.search(name):
            matched[name] = None
        elif name not in source:
            raise ValueError(f"the weights have no {name}; exclude={(module(name),)} starts it from scratch")
        else:
            matched[name] = fitted(name, source[name], leaf.shape, modules)
    filled = {module(name) for name, value in matched.items() if isinstance(value, np.ndarray)}
    for name in source:
        if name not in target and module(name) in filled:
            raise ValueError(f"{name} of the weights has no place in this model")
    return unflatten_dict(matched, sep="/")


def module(name):
    """ "params/encoders/image/..." -> "params/encoders/image/": a whole encoder or head."""
    return "/".join(name.split("/")[: 3 if name.startswith("params/") else 2]) + "/"


def fitted(name: str, array, shape: tuple[int, ...], modules: Mapping[str, Encoder]) -> np.ndarray:
    """An array of another model, resized to a parameter of this one.

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
