"""Multi-head attention, softmax(q k^T / sqrt(D) + bias) v: all models compute it here.

The implementations differ in memory and speed, not in the result: to 1e-5 in float32, to 2e-2 in bfloat16, where
they round at different places.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from big_ssl.parallel.mesh import BATCH_AXES
from big_ssl.parallel.notices import warn_once

IMPLEMENTATIONS = {
    # XLA's on every platform, until another is measured to be faster there.
    "auto": "xla",
    # Plain products, whose [B, H, T, S] weights are in memory.
    "xla": "xla",
    # cuDNN's flash attention: GPUs, 16-bit numbers.
    "cudnn": "cudnn",
    # JAX's Pallas kernel for TPUs; splash_interpreted runs it on any platform, slowly, for tests.
    "splash": "splash",
    "splash_interpreted": "splash_interpreted",
}
# The name by which models/flops.py finds the kernels whose products are not in the jaxpr.
KERNEL_NAME = "attention_kernel"

# Splash attention computes tiles of whole vector registers; larger tiles are faster.
_LANES, _TILES = 128, (512, 384, 256, 128)


def attention(query, key, value, *, mask=None, bias=None, causal=False, implementation="auto"):
    """Multi-head attention.

    Args:
      query: [B, T, H, D].
      key, value: [B, S, H, D], of the same dtype.
      mask: bool, broadcastable to [B, H, T, S], True where a query attends to a key; each query must attend
        to at least one.
      bias: broadcastable to [B, H, T, S], added to the logits.
      causal: whether a query attends only to keys up to its own position.
      implementation: a name in IMPLEMENTATIONS; where the platform, a dtype or a shape rules it out, XLA's
        runs instead, and a warning says why, once.
    Returns [B, T, H, D] of the same dtype. The softmax is float32. Raises ValueError for an unknown name.
    """
    chosen = check_implementation(implementation)
    obstacle = _OBSTACLES[chosen](query, key, mask, bias)
    if obstacle:
        warn_once(f"attention: {chosen} needs {obstacle}; XLA's attention runs instead")
        chosen = "xla"
    if chosen == "xla":
        options = dict(mask=mask, bias=bias, is_causal=causal, implementation="xla")
        return jax.nn.dot_product_attention(query, key, value, **options)
    return attention_kernel(query, key, value, mask, bias, causal=causal, implementation=chosen)


def attention_weights(query, key):
    """softmax(q k^T / sqrt(D)), the rows that sum to one: [B, H, T, S].

    query: [B, T, H, D]; key: [B, S, H, D]. For looking at them: `attention` need not write them down.
    """
    return nn.dot_product_attention_weights(query, key)


def check_implementation(name: str) -> str:
    """What runs under this name. Raises ValueError for a name that is not in IMPLEMENTATIONS."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {name!r}; there are {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]


def flops(query: Sequence[int], key: Sequence[int]) -> int:
    """FLOPs of the two products, from the shapes [..., T, H, D] and [..., S, H, D]; masked logits count."""
    return 4 * math.prod(query) * key[-3]


@functools.partial(jax.jit, static_argnames=("causal", "implementation"))
def attention_kernel(query, key, value, mask, bias, *, causal, implementation):
    """One of the kernels that hide their products from the jaxpr; arguments as in `attention`."""
    if implementation == "cudnn":
        options = dict(mask=mask, bias=bias, is_causal=causal, implementation="cudnn")
        return jax.nn.dot_product_attention(query, key, value, **options)
    splash = functools.partial(_splash, causal=causal, interpret=implementation == "splash_interpreted")
    return _per_device(splash, query, key, value, mask)


def _per_device(function, query, key, value, mask):
    """The function on each device's examples and heads: the compiler cannot split a Pallas kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(query, key, value, mask)
    heads = "tensor" if query.shape[2] % mesh.shape["tensor"] == 0 else None
    spec = PartitionSpec(BATCH_AXES, None, heads)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (len(query), *mask.shape[1:]))
    specs = (spec, spec, spec, PartitionSpec(BATCH_AXES))
    # A Pallas call does not tell over which axes its results vary.
    mapped = jax.shard_map(function, in_specs=specs, out_specs=spec, check_vma=False)
    return mapped(query, key, value, mask)


def _splash(query, key, value, mask, *, causal, interpret):
    """Splash attention, for lengths padded to multiples of _LANES. mask: bool[B or 1, 1, 1, S] or None."""
    batch, length, heads, width = query.shape
    query = query * jnp.asarray(width**-0.5, query.dtype)  # the kernel does not scale
    query, key, value = (_pad(x.swapaxes(1, 2), 2) for x in (query, key, value))
    shape = (query.shape[2], key.shape[2])
    kernel = _splash_kernel(heads, shape, causal, interpret)
    segments = _segments(mask, batch, shape, key_count) if mask is not None or padded else None
    return jax.vmap(kernel)(query, key, value, segments)[:, :, :length].swapaxes(1, 2)
