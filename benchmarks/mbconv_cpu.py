"""EfficientNet's block on CPU: the forms of its depthwise convolution, and the whole block
against the same block built from flax's own layers. Forward and backward, float32.

    python -m benchmarks.mbconv_cpu

Times are the best of several runs taken in turn, so that a slow spell of the machine meets
all forms; the last column is what counts.
"""

import functools
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_ssl.models import convolutions
from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.efficientnet import MBConv, Stage

BATCH = 128
# (map size, input channels, kernel) of blocks at several depths of the demo's tower.
SHAPES = ((16, 16, 3), (8, 40, 5), (4, 112, 5), (4, 192, 3))


class FlaxMBConv(nn.Module):
    """The same block, stride 1, in [B, H, W, C] from nn.Conv and nn.BatchNorm."""

    stage: Stage

    @nn.compact
    def __call__(self, x):
        stage, channels = self.stage, x.shape[-1]
        hidden = channels * stage.expand
        norm = functools.partial(nn.BatchNorm, use_running_average=False, epsilon=1e-3)
        y = nn.silu(norm()(nn.Conv(hidden, (1, 1), use_bias=False)(x)))
        kernel = (stage.kernel, stage.kernel)
        y = nn.silu(norm()(nn.Conv(hidden, kernel, feature_group_count=hidden, use_bias=False)(y)))
        gate = nn.Dense(hidden)(nn.silu(nn.Dense(channels // 4)(y.mean((1, 2)))))
        y = y * nn.sigmoid(gate)[:, None, None]
        return x + norm()(nn.Conv(channels, (1, 1), use_bias=False)(y))


def best_times(functions, runs=5):
    """{name: seconds}, the best of `runs`, one of each in turn; functions: {name: () -> array}."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(runs):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def depthwise_functions(size, channels, kernel):
    """Gradient of each depthwise form, for a map of `channels` channels."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(channels, BATCH, size, size)), jnp.float32)
    weights = jnp.ones((kernel, kernel, channels))
    padding = convolutions.spatial_padding(x, kernel, 1)
    for name in ("grouped", "shifted", "dense"):
        form = functools.partial(getattr(convolutions, f"depthwise_{name}"), stride=1, padding=padding)
        grad = jax.jit(jax.grad(lambda x, w, form=form: (form(x, w) ** 2).sum(), (0, 1)))
        yield name, functools.partial(grad, x, weights)


def block_functions(size, channels, kernel):
    """Gradient of the whole block, flax's and ours."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, size, size, channels)), jnp.float32)
    stage = Stage(kernel, channels, 1, 1, 6)
    norm = functools.partial(BatchNorm, 0, 0.99)
    pairs = (
        ("flax", FlaxMBConv(stage), x, ()),
        ("ours", MBConv(stage, 0.0, norm), x.transpose(3, 0, 1, 2), (True,)),
    )
    for name, module, inputs, arguments in pairs:
        variables = module.init(jax.random.key(0), inputs, *arguments)
        yield name, functools.partial(_block_grad(module, arguments), variables, inputs)


def _block_grad(module, arguments):
    def loss(params, state, x):
        y, state = module.apply({"params": params, **state}, x, *arguments, mutable=["batch_stats"])
        return (y**2).sum(), state

    grad = jax.jit(jax.grad(loss, (0, 2), has_aux=True))
    return lambda variables, x: grad(variables["params"], {"batch_stats": variables["batch_stats"]}, x)


def main() -> None:
    print(f"batch {BATCH}, {jax.devices()[0].device_kind}, gradients, milliseconds")
    for size, channels, kernel in SHAPES:
        hidden = 6 * channels
        times = best_times(dict(depthwise_functions(size, hidden, kernel)))
        print(f"depthwise {hidden:>4} x {size}x{size}, k={kernel}: " + _row(times, "grouped"))
        times = best_times(dict(block_functions(size, channels, kernel)))
        print(f"MBConv    {channels:>4} x {size}x{size}, k={kernel}: " + _row(times, "flax"))


def _row(times, baseline):
    cells = (
        f"{name} {seconds * 1e3:7.1f} ({times[baseline] / seconds:5.1f}x)" for name, seconds in times.items()
    )
    return "  ".join(cells)


if __name__ == "__main__":
    main()
