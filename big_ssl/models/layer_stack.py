"""Layers applied one after the other: unrolled or scanned, kept or recomputed for the gradient.

Unrolled, each layer has parameters of its own, "layer0", "layer1", ... Scanned, one compiled body
runs in a loop over arrays [layers, ...] under "layer_stack": compile time no longer grows with
depth. models/layer_layouts.py converts weights between the two.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_ssl.parallel.stacked import SUFFIX

# What the backward pass of a layer may read from the forward pass, and need not compute again.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    # Everything: fastest, and the most memory.
    "none": None,
    # The results of matrix products of activations with weights, which are expensive to recompute;
    # not the elementwise work between them, nor attention's scores.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # The layer's input alone: the least memory, for a second forward pass, a third more work.
    "full": jax.checkpoint_policies.nothing_saveable,
}


def apply_layers(
    make: Callable[..., nn.Module],
    prefix: str,
    indices: range,
    call: Callable,
    x,
    per_layer: Sequence | None = None,
    *,
    scan: bool,
    remat: str,
):
    """x after the layers "<prefix><i>" for i in indices, or after their stack "<prefix>_stack".

    make: builds a layer, given its name; call(layer, x, entry) -> x of the same shape and dtype,
    where entry is the layer's entry of per_layer (None without). What call closes over, such as a
    mask or `train`, is shared by all layers. Only for use inside a module's compact method.
    per_layer: for each layer a pytree of numbers or arrays. Scanned, they reach call as arrays.
    scan: one loop instead of separate layers; they must then be alike in all but their weights.
    remat: a name in REMAT_POLICIES.
    """
    if not indices:
        return x
    entries = [None] * len(indices) if per_layer is None else per_layer
    if scan:
        return _scanned(make(name=f"{prefix}{SUFFIX}"), call, x, entries, len(indices), remat)
    for i, entry in zip(indices, entries, strict=True):
        x = _apply(make(name=f"{prefix}{i}"), call, x, entry, remat)
    return x


def _apply(layer, call, x, entry, remat):
    # entry stays outside the transformation, and so a Python number: a rate of None or 0 can be
    # seen while tracing. prevent_cse: outside a loop XLA would merge the recomputation with the
    # forward pass, and keep in memory what was to be recomputed.
    return _rematerialised(lambda layer, x: call(layer, x, entry), remat, prevent_cse=True)(layer, x)


def _scanned(layer, call, x, entries, length, remat):
    entry = jax.tree.map(lambda *values: jnp.stack(values), *entries)
    # A loop's forward and backward bodies are apart, so that nothing could be merged. Inside what is
    # recomputed a layer reads its parameters, and gathers those that are split (parallel/fsdp.py): no
    # layer's whole parameters wait for the backward pass.
    body = _rematerialised(call, remat, prevent_cse=False)
    loop = nn.scan(
        lambda layer, x, entry: (body(layer, x, entry), None),
        # "intermediates" are there only where flax is asked to capture them.
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
    )
    return loop(layer, x, entry)[0]


def _rematerialised(call, remat, prevent_cse):
    policy = REMAT_POLICIES[remat]
    return call if policy is None else nn.remat(call, policy=policy, prevent_cse=prevent_cse)
