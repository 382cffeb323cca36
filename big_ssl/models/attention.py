"""Attention, for all encoders, by XLA or by a fused kernel.

A fused kernel does not write the [T, S] scores to memory. It needs an accelerator and does not support every
input; XLA then computes instead, and the log states the reason once. Splash attention equals XLA's to
1e-5 in float32 and to 2e-2 in bfloat16; cuDNN's, which has no float32, has not been compared yet. All have
the same FLOPs (models/flops.py).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from big_ssl.models.flops import FUSED_ATTENTION
from big_ssl.parallel.mesh import BATCH, BATCH_AXES
from big_ssl.parallel.notices import warn_once

# Splash attention's tiles are a multiple of this long; the larger, the faster.
_LANES = 128
_TILES = (512, 384, 256, _LANES)


class Inputs(NamedTuple):
    """The arguments of `attention`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    mask: jax.Array | None
    bias: jax.Array | None
    causal: bool


def attention(q, k, v, *, mask=None, bias=None, causal: bool = False, implementation: str = "auto"):
    """softmax(q k^T / sqrt(d) + bias) v, for each head.

    Args:
      q: float[B, T, H, d], queries.
      k: float[B, S, H, d], keys.
      v: float[B, S, H, d], values.
      mask: bool, four axes that broadcast to [B, H, T, S]; True where a query sees a key. Implementations
        differ for a query that sees no key.
      bias: float, four axes that broadcast to [B, H, T, S], added to the scores.
      causal: whether a position sees only itself and those before it.
      implementation: a name in IMPLEMENTATIONS. "auto" is "xla" on every platform, until a measurement
        shows another one to be faster. "cudnn" needs a GPU, "splash" a TPU; "splash_interpreted" runs the
        latter's kernel on any platform, very slowly, for tests.

    Returns:
      float[B, T, H, d] of q's dtype. Raises ValueError for an unknown implementation.
    """
    inputs, chosen = Inputs(q, k, v, mask, bias, causal), _implementation(implementation)
    if reason := chosen.obstacle(inputs):
        warn_once(f"attention: XLA's in place of {implementation}: {reason}")
        chosen = IMPLEMENTATIONS["xla"]
    return chosen.compute(inputs)


def of_encoder(encoder: nn.Module) -> str:
    """The implementation in a call of this encoder: its option `attention`; "xla" in its initialisation,
    whose single example no kernel could split over devices. Raises ValueError for an unknown one."""
    _implementation(encoder.attention)  # type: ignore[attr-defined]
    return "xla" if encoder.is_initializing() else encoder.attention  # type: ignore[attr-defined]


def _implementation(name):
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {name!r}; there are {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]


def attention_weights(q, k):
    """softmax(q k^T / sqrt(d)): float[B, H, T, S], for plots. q: float[B, T, H, d], k: float[B, S, H, d]."""
    return nn.dot_product_attention_weights(q, k)


def _xla(inputs):
    q, k, v, mask, bias, causal = inputs
    return jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=causal, implementation="xla")


def _fused(function):
    """A function of Inputs, jitted under the name that models/flops.py recognises."""

    def compute(inputs):
        def fused(q, k, v, mask, bias):
            return function(Inputs(q, k, v, mask, bias, inputs.causal))

        fused.__name__ = FUSED_ATTENTION
        return jax.jit(fused)(*inputs[:-1])

    return compute


def _cudnn(inputs):
    q, k, v, mask, bias, causal = inputs
    return jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=causal, implementation="cudnn")


def _cudnn_obstacle(inputs):
    """The same conditions that jax checks when it traces or compiles."""
    (_, queries, _, dim), keys = inputs.q.shape, inputs.k.shape[1]
    if _platform() not in ("gpu", "cuda"):
        return f"it runs on GPUs, and this is a {_platform()}"
    if inputs.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16 and float16, and the inputs are {inputs.q.dtype}"
    if dim % 8 or dim > 128:
        return f"it takes heads of a multiple of 8 up to 128, and theirs is {dim}"
    if (inputs.mask is not None or inputs.bias is not None) and (queries % 2 or keys % 2):
        return f"with a mask or bias it takes even lengths, and these are {queries} and {keys}"
    return None


def _splash(inputs, interpret=False):
    q, k, v, mask, _, causal = inputs
    key_mask = jnp.ones((len(k), k.shape[1]), bool) if mask is None else mask[:, 0, 0]
    key_mask = jnp.broadcast_to(key_mask, (len(k), k.shape[1]))
    one_device = functools.partial(_splash_on_one_device, causal=causal, interpret=interpret)
    if jax.sharding.get_abstract_mesh().empty:
        return one_device(q, k, v, key_mask)
    # The compiler can't split a kernel. Its outputs state no axis over which they vary, hence no check.
    mapped = jax.shard_map(one_device, in_specs=(BATCH,) * 4, out_specs=BATCH, check_vma=False)
    return mapped(q, k, v, key_mask)


def _splash_on_one_device(q, k, v, key_mask, *, causal, interpret):
    """key_mask: bool[B, S], the keys that all queries see."""
    length, dim = q.shape[1], q.shape[-1]
    # The kernel takes [H, T, d] of one example, and does not scale.
    q, k, v = (_padded(x.swapaxes(1, 2), 2) for x in (q * dim**-0.5, k, v))
    segments = splash_kernel.SegmentIds(
        q=jnp.ones((len(q), q.shape[2]), jnp.int32), kv=_padded(key_mask.astype(jnp.int32), 1)
    )
    kernel = _splash_kernel(q.shape[1], q.shape[2], k.shape[2], causal, interpret)
    return jax.vmap(kernel)(q, k, v, segments)[:, :, :length].swapaxes(1, 2)


def _splash_kernel(heads, queries, keys, causal, interpret):
    make = splash_mask.CausalMask if causal else splash_mask.FullMask
    mask = splash_mask.MultiHeadMask([make((queries, keys))] * heads)
    tile_q, tile_kv = (next(tile for tile in _TILES if n % tile == 0) for n in (queries, keys))
    sizes = splash_kernel.BlockSizes(
        block_q=tile_q, block_kv=tile_kv, block_q_dkv=tile_q, block_kv_dkv=tile_kv,
        block_q_dq=tile_q, block_kv_dq=tile_kv,
    )  # fmt: skip
    return splash_kernel.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )


def _padded(x, axis):
    """x padded with zeros along the axis to a multiple of the tiles."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, -x.shape[axis] % _LANES)
    return jnp.pad(x, pads)


def _splash_obstacle(inputs):
    if _platform() != "tpu":
        return f"it runs on TPUs, and this is a {_platform()}"
    if jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1:
        return "there are several devices and no mesh that states how to split it"
    return _splash_shape_obstacle(inputs)


def _splash_shape_obstacle(inputs):
    batch, queries, keys = len(inputs.q), inputs.q.shape[1], inputs.k.shape[1]
    if inputs.bias is not None:
        return "it takes no bias"
    if inputs.mask is not None and inputs.mask.shape[1:] != (1, 1, keys):
        return f"it takes masks of keys, [B, 1, 1, S], and this one is {list(inputs.mask.shape)}"
    if queries == 1:
        return f"a single query would fill 1 of {_LANES} rows of a tile"
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return f"{batch} examples are no multiple of data x fsdp = {shards}" if batch % shards else None


def _platform() -> str:
    """The platform of the devices that XLA compiles for, which may differ from this process's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


class Implementation(NamedTuple):
    """compute: Inputs -> float[B, T, H, d]; obstacle: Inputs -> why it can't be used, None if it can."""

    compute: Callable
    obstacle: Callable = lambda inputs: None


IMPLEMENTATIONS = {
    "auto": Implementation(_xla),
    "xla": Implementation(_xla),
    "cudnn": Implementation(_fused(_cudnn), _cudnn_obstacle),
    "splash": Implementation(_fused(_splash), _splash_obstacle),
    "splash_interpreted": Implementation(
        _fused(functools.partial(_splash, interpret=True)), _splash_shape_obstacle
    ),
}
