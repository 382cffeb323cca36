"""Model FLOPs, against counts by hand and published ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

from big_ssl.models import convolutions, efficientnet, flops


def _array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.smoke
def test_a_dense_layer():
    dense = nn.Dense(7)
    params = jax.eval_shape(dense.init, jax.random.key(0), _array(5, 3))
    assert flops.forward_flops(dense.apply, params, _array(5, 3)) == 2 * 5 * 3 * 7


def test_a_batched_product():
    assert flops.forward_flops(jnp.matmul, _array(4, 5, 3), _array(4, 3, 7)) == 2 * 4 * 5 * 3 * 7


def _conv(x, kernel, stride=1, groups=1, **options):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "groups", "expected"),
    [
        (6, 10, 1, 1, 2 * 2 * 8 * 8 * 10 * 6 * 9),
        (6, 10, 2, 1, 2 * 2 * 4 * 4 * 10 * 6 * 9),
        (6, 10, 1, 2, 2 * 2 * 8 * 8 * 10 * 3 * 9),
        (6, 6, 1, 6, 2 * 2 * 8 * 8 * 6 * 9),
    ],
)
def test_convolutions(inputs, outputs, stride, groups, expected):
    kernel = _array(3, 3, inputs // groups, outputs)
    count = flops.forward_flops(lambda x, k: _conv(x, k, stride, groups), _array(2, 8, 8, inputs), kernel)
    assert count == expected


def test_the_holes_of_a_transposed_convolution_do_not_count():
    def upsample(x, kernel):
        return lax.conv_transpose(x, kernel, (2, 2), "SAME")

    # Each of the 4 x 4 inputs meets each tap once.
    assert flops.forward_flops(upsample, _array(1, 4, 4, 3), _array(4, 4, 3, 5)) == 2 * 4 * 4 * 16 * 3 * 5


def test_the_depthwise_convolution_counts_as_one_whatever_it_runs_as():
    def depthwise(x, kernel):
        return convolutions.depthwise_conv(x, kernel, 1, ((1, 1), (1, 1)))

    assert flops.forward_flops(depthwise, _array(6, 2, 8, 8), _array(3, 3, 6)) == 2 * 6 * 2 * 8 * 8 * 9


def _block(x, kernel):
    return nn.gelu(x @ kernel)


BLOCKS = (_array(4, 8), _array(5, 8, 8))
FIVE_BLOCKS = 5 * 2 * 4 * 8 * 8


def _scanned(x, kernels, block=_block):
    return lax.scan(lambda x, kernel: (block(x, kernel), None), x, kernels)[0]


def _unrolled(x, kernels):
    for kernel in kernels:
        x = _block(x, kernel)
    return x


def test_a_scan_counts_as_its_unrolled_blocks():
    assert flops.forward_flops(_scanned, *BLOCKS) == flops.forward_flops(_unrolled, *BLOCKS) == FIVE_BLOCKS


def test_remat_and_jit_and_custom_derivatives_change_nothing():
    custom = jax.custom_vjp(_block)
    custom.defvjp(lambda x, k: (_block(x, k), None), lambda _, g: (g, None))
    tangent = jax.custom_jvp(_block)
    tangent.defjvps(None, None)
    for wrapped in (jax.checkpoint(_block), jax.jit(_block), custom, tangent):
        assert flops.forward_flops(lambda x, k, w=wrapped: _scanned(x, k, w), *BLOCKS) == FIVE_BLOCKS


def test_of_a_cond_the_dearest_branch_counts():
    def either(flag, x):
        return lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.forward_flops(either, jax.ShapeDtypeStruct((), bool), _array(3, 3)) == 2 * 2 * 27


def test_products_in_a_while_loop_are_refused():
    def powers(x):
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match=r"while loop with matrix products"):
        flops.forward_flops(powers, _array(3, 3))
    assert flops.forward_flops(lambda x: lax.while_loop(lambda x: x.sum() < 9, jnp.sin, x), _array(3)) == 0


def test_a_shard_map_counts_on_all_its_devices():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    specs = dict(in_specs=PartitionSpec(("a", "b")), out_specs=PartitionSpec(("a", "b")))
    mapped = jax.shard_map(lambda x: x @ x.T @ x, mesh=mesh, **specs)
    assert flops.forward_flops(mapped, _array(16, 3)) == 8 * 2 * (2 * 2 * 2 * 3)


def _tower_flops(variant, size):
    width, depth = efficientnet.VARIANTS[variant]
    return efficientnet.EfficientNet(width=width, depth=depth).flops(1, size, size, 3)


def test_efficientnet_b0_has_its_published_count():
    # Table 2 of arXiv 1905.11946: 0.39 GMAC at 224 px, with the top that ALIGN leaves out.
    top = 7 * 7 * 320 * 1280 + 1280 * 1000
    assert _tower_flops("b0", 224) / 2 + top == pytest.approx(0.39e9, rel=0.02)


@pytest.mark.slow
def test_efficientnet_l2_has_its_known_count():
    # 69.8 GMAC at 289 px: the layers' shapes added up apart from this code.
    assert _tower_flops("l2", 289) / 2 == pytest.approx(69.8e9, rel=0.005)


def _kernel(x_ref, y_ref, out_ref):
    out_ref[...] = x_ref[...] @ y_ref[...]


def test_a_pallas_kernel_counts_as_often_as_its_grid_runs():
    def product(x, y, **options):
        return pl.pallas_call(
            _kernel,
            out_shape=jax.ShapeDtypeStruct((16, 8), jnp.float32),
            grid=(4,),
            in_specs=[pl.BlockSpec((4, 8), lambda i: (i, 0)), pl.BlockSpec((8, 8), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((4, 8), lambda i: (i, 0)),
            **options,
        )(x, y)

    arrays = _array(16, 8), _array(8, 8)
    assert flops.forward_flops(product, *arrays) == 2 * 16 * 8 * 8
    estimate = pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)
    assert flops.forward_flops(lambda x, y: product(x, y, cost_estimate=estimate), *arrays) == 77
    batch = jax.ShapeDtypeStruct((3, 16, 8), jnp.float32)
    assert flops.forward_flops(jax.vmap(product, (0, None)), batch, arrays[1]) == 3 * 2 * 16 * 8 * 8
