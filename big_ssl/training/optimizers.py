"""Optimisers from config. None contains its learning rate: the step multiplies by a function
of state.step, so a skipped step can't shift the schedule."""

import re
from collections.abc import Mapping, Sequence

import jax
import optax

from big_ssl.parallel.sharding import path_name
from big_ssl.parallel.stacked import is_stacked


def build(config: Mapping) -> optax.GradientTransformation:
    """AdamW or LAMB (You et al. 2020, arXiv 1904.00962) from config.

    config: name "adamw" | "lamb", b1, b2, eps, weight_decay; decay_exclude and (LAMB)
    adapt_exclude, regular expressions searched in a parameter's path "image/stem_bn/scale":
    those matched get no weight decay, or no layer-wise trust ratio; clip_norm, the global
    gradient norm to clip at, 0 for none. The updates are ascent directions of unit rate.
    """
    parts = [optax.clip_by_global_norm(config["clip_norm"])] if config["clip_norm"] else []
    parts.append(optax.scale_by_adam(config["b1"], config["b2"], config["eps"]))
    decayed = exclude(config["decay_exclude"])
    parts.append(optax.add_decayed_weights(config["weight_decay"], mask=decayed))
    if config["name"] == "lamb":
        parts.append(optax.masked(scale_by_trust_ratio(), exclude(config["adapt_exclude"])))
    elif config["name"] != "adamw":
        raise ValueError(f'optimizer.name is {config["name"]!r}; "adamw" and "lamb" are known')
    return optax.chain(*parts)


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """optax's, with a ratio for each layer of a stack, as when the layers were apart."""
    plain = optax.scale_by_trust_ratio()

    def update(updates, state, params):
        def scale(update, param):
            return plain.update(update, state, param)[0]

        def scale_leaf(path, update, param):
            return (jax.vmap(scale) if is_stacked(path) else scale)(update, param)

        return jax.tree_util.tree_map_with_path(scale_leaf, updates, params), state

    return optax.GradientTransformation(plain.init, update)


def exclude(patterns: Sequence[str]):
    """A mask function for optax: True for each parameter whose path matches none of patterns."""
    pattern = re.compile("|".join(f"(?:{p})" for p in patterns)) if patterns else None

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: pattern is None or not pattern.search(path_name(path)), params
        )

    return mask
