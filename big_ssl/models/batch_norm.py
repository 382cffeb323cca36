"""Batch normalisation over channel-major maps, with an explicit group size."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Batch normalisation of [C, B, H, W], Ioffe and Szegedy 2015 (arXiv 1502.03167).

    bn_group: examples that share statistics ("ghost" batch norm, Hoffer et al. 2017), a
      divisor of the batch; 0 takes the whole global batch, however many devices hold it.
      ALIGN was trained on 16 examples a core.
    momentum: of the running averages, as Keras counts it (new = m*old + (1-m)*batch).

    Statistics are float32 whatever the compute dtype. The running mean and variance
    (collection "batch_stats", float32[C]) are the average over groups, the variance biased.
    """

    bn_group: int = 0
    momentum: float = 0.99
    epsilon: float = 1e-3
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x, train: bool):
        channels, batch = x.shape[:2]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            gain = scale * jax.lax.rsqrt(var.value + self.epsilon)
            return _affine(x, gain, bias - mean.value * gain)
        group = _check_group(self.bn_group, batch)
        grouped = x.reshape(channels, batch // group, group, *x.shape[2:])
        y, (group_mean, group_var) = normalize(grouped, scale, bias, self.epsilon)
        if not self.is_initializing():
            mean.value += (1 - self.momentum) * (group_mean.mean(1) - mean.value)
            var.value += (1 - self.momentum) * (group_var.mean(1) - var.value)
        return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x, scale, bias, epsilon):
    """Normalises each (channel, group) of x: [C, G, ...] by its own mean and variance.

    Returns y of x's shape and dtype, and (mean, var): float32[C, G]; no gradient flows
    through these two. The VJP is hand-written because autodiff's derivative
    fuses the elementwise work into the reductions, 4x slower on CPU.
    """
    return _normalize_fwd(x, scale, bias, epsilon)[0]


def _normalize_fwd(x, scale, bias, epsilon):
    axes, count = tuple(range(2, x.ndim)), x[0, 0].size
    x32 = x.astype(jnp.float32)
    mean = x32.sum(axes) / count
    var = jnp.maximum((x32 * x32).sum(axes) / count - mean * mean, 0)
    inverse = jax.lax.rsqrt(var + epsilon)
    gain = scale[:, None] * inverse
    y = _affine(x, gain, bias[:, None] - mean * gain)
    return (y, (mean, var)), (x, scale, mean, inverse)


def _normalize_bwd(epsilon, residuals, cotangents):
    x, scale, mean, inverse = residuals
    grad = cotangents[0]
    axes, count = tuple(range(2, x.ndim)), x[0, 0].size
    grad32 = grad.astype(jnp.float32)
    d_bias = grad32.sum(axes)
    d_scale = ((grad32 * x).sum(axes) - mean * d_bias) * inverse
    gain = scale[:, None] * inverse
    # d_x = gain * (grad - mean(grad) - x_hat * mean(grad * x_hat)), regrouped per term of x.
    slope = gain * inverse * d_scale / count
    d_x = _affine(grad, gain, mean * slope - gain * d_bias / count) - _affine(x, slope, 0 * slope)
    return d_x.astype(x.dtype), d_scale.sum(1), d_bias.sum(1)


normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _affine(x, gain, shift):
    """gain * x + shift, the two broadcast over x's trailing axes; x's dtype."""
    expand = (..., *(None,) * (x.ndim - gain.ndim))
    return (x * gain[expand] + shift[expand]).astype(x.dtype)


def _check_group(bn_group, batch):
    group = bn_group or batch
    if batch % group:
        raise ValueError(f"batch norm: bn_group {group} does not divide the batch of {batch}")
    return group
