"""Applies layers in sequence: unrolled or scanned, with or without rematerialisation.

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

# Which results of a layer's forward pass are saved for its backward pass.
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
    """Applies the layers "<prefix><i>" for i in indices, or their stack "<prefix>_stack".

    Only for use inside a module's compact method.

    Args:
      make: make(name=...) builds a layer.
      prefix: of the layers' names.
      indices: of the layers.
      call: (layer, x, entry) -> x of the same shape and dtype, where entry is the layer's entry of per_layer
        (None without). All layers share the variables that call closes over, such as a mask or `train`.
      x: the input, a pytree of arrays.
      per_layer: for each layer a pytree of numbers or arrays. Scanned, call gets arrays.
      scan: one loop instead of separate layers; they must then be equal except for their weights.
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
    # entry stays outside the transformation, and so a Python number: call can test for a rate of None or 0
    # while tracing. prevent_cse: outside a loop XLA would merge the recomputation with the forward pass, and
    # keep its results in memory.
    return _rematerialised(lambda layer, x: call(layer, x, entry), remat, prevent_cse=True)(layer, x)


def _scanned(layer, call, x, entries, length, remat):
    entry = jax.tree.map(lambda *values: jnp.stack(values), *entries)
    # A loop's forward and backward bodies are separate, so XLA can't merge them. The recomputed function
    # reads a layer's parameters, and gathers the sharded ones (parallel/fsdp.py): no layer's gathered
    # parameters are kept for the backward pass.
    body = _rematerialised(call, remat, prevent_cse=False)
    loop = nn.scan(
        lambda layer, x, entry: (body(layer, x, entry), None),
        # "intermediates" exist only if flax captures them.
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
    )
    return loop(layer, x, entry)[0]


def _rematerialised(call, remat, prevent_cse):
    policy = REMAT_POLICIES[remat]
    return call if policy is None else nn.remat(call, policy=policy, prevent_cse=prevent_cse)
