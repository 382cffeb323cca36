"""Builds optimisers from config.

They do not contain the learning rate: the train step multiplies by a function of state.step, so that a
skipped step can't shift the schedule.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from big_ssl.parallel.sharding import path_name
from big_ssl.parallel.stacked import is_stacked

NAMES = ("adamw", "lamb", "sgd")


def build(config: Mapping, schedule: Callable = optax.constant_schedule) -> optax.GradientTransformation:
    """AdamW, LAMB (You et al. 2020, arXiv 1904.00962) or SGD with momentum from config.

    Args:
      config: name, in NAMES; b1, b2 and eps (SGD has only b1, its momentum); weight_decay, a number, or what
        `schedule` takes; weight_decay_exclude and, for LAMB, trust_ratio_exclude, regexes that are searched
        in a parameter's path "image/stem_bn/scale": a match gets no weight decay, or no trust ratio;
        clip_norm, the gradient norm to clip at, 0 for none; clip_scope, whose norm, a name in CLIPS.
      schedule: makes the weight decay a function of the step.

    Returns:
      The transformation. Its updates ascend at unit rate, and `update` takes step=step.

    Raises:
      ValueError: for another name.
    """
    parts = [CLIPS[config["clip_scope"]](config["clip_norm"])] if config["clip_norm"] else []
    if config["name"] not in NAMES:
        raise ValueError(f"optimizer.name is {config['name']!r}; use {', '.join(NAMES)}")
    if config["name"] == "sgd":
        parts.append(optax.trace(config["b1"]))
    else:
        parts.append(optax.scale_by_adam(config["b1"], config["b2"], config["eps"]))
    decay_mask = exclude(config["weight_decay_exclude"])
    parts.append(optax.masked(add_decayed_weights(schedule(config["weight_decay"])), decay_mask))
    if config["name"] == "lamb":
        parts.append(optax.masked(scale_by_trust_ratio(), exclude(config["trust_ratio_exclude"])))
    return optax.chain(*parts)


def add_decayed_weights(weight_decay: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """optax.add_decayed_weights by the run's step, not by its own count, which a skipped step would shift."""

    def update(updates, state, params, *, step=0, **_):
        rate = weight_decay(step)
        return jax.tree.map(lambda u, p: u + rate * p, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def clip_each_norm(limit: float) -> optax.GradientTransformation:
    """Clips each parameter's gradient by its own norm, and each layer's within a stack (iBOT)."""

    def clip(update):
        return update * jnp.minimum(1, limit / (jnp.linalg.norm(update.ravel()) + 1e-6))

    def update(updates, state, params=None):
        del params
        clipped = jax.tree_util.tree_map_with_path(
            lambda path, u: (jax.vmap(clip) if is_stacked(path) else clip)(u), updates
        )
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clip_part_norm(limit: float) -> optax.GradientTransformation:
    """Clips each encoder's and each head's gradient by its global norm (DINOv2)."""
    clip_global = optax.clip_by_global_norm(limit)

    def update(updates, state, params=None):
        clipped = {
            kind: {name: clip_global.update(part, state, params)[0] for name, part in parts.items()}
            for kind, parts in updates.items()
        }
        return clipped, state

    return optax.GradientTransformation(clip_global.init, update)


# {clip_scope: transformation}: the norm of the whole gradient, of each encoder and head, of each parameter.
CLIPS = {"all": optax.clip_by_global_norm, "part": clip_part_norm, "parameter": clip_each_norm}


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """optax.scale_by_trust_ratio with one ratio per layer of a stack, as for unstacked layers."""
    scale_array = optax.scale_by_trust_ratio()

    def update(updates, state, params):
        def scale(update, param):
            return scale_array.update(update, state, param)[0]

        def scale_leaf(path, update, param):
            return (jax.vmap(scale) if is_stacked(path) else scale)(update, param)

        return jax.tree_util.tree_map_with_path(scale_leaf, updates, params), state

    return optax.GradientTransformation(scale_array.init, update)


def exclude(patterns: Sequence[str]):
    """A mask function for optax: True for each parameter whose path matches none of the regexes."""
    pattern = re.compile("|".join(f"(?:{p})" for p in patterns)) if patterns else None

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: pattern is None or not pattern.search(path_name(path)), params
        )

    return mask
