"""EfficientNet's sizes against the published ones, its shapes, and drop-connect."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import encoders
from big_ssl.models.batch_norm import BatchNorm
from big_ssl.models.efficientnet import (
    VARIANTS,
    EfficientNet,
    MBConv,
    Stage,
    round_channels,
    round_repeats,
)
from big_ssl.models.layer_layouts import unstack_layers

# Table 1 of the paper: kernel, expansion and stride of the seven stages.
KERNELS, EXPANSIONS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 6, 6, 6, 6, 6, 6), (1, 2, 2, 2, 1, 2, 1)
# The published networks after scaling: stem, the stages' widths, their numbers of blocks.
NETWORKS = {
    "b0": (32, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "b1": (32, (16, 24, 40, 80, 112, 192, 320), (2, 3, 3, 4, 4, 5, 2)),
    "b2": (32, (16, 24, 48, 88, 120, 208, 352), (2, 3, 3, 4, 4, 5, 2)),
    "b3": (40, (24, 32, 48, 96, 136, 232, 384), (2, 3, 3, 5, 5, 6, 2)),
    "b4": (48, (24, 32, 56, 112, 160, 272, 448), (2, 4, 4, 6, 6, 8, 2)),
    "b5": (48, (24, 40, 64, 128, 176, 304, 512), (3, 5, 5, 7, 7, 9, 3)),
    "b6": (56, (32, 40, 72, 144, 200, 344, 576), (3, 6, 6, 8, 8, 11, 3)),
    "b7": (64, (32, 48, 80, 160, 224, 384, 640), (4, 7, 7, 10, 10, 13, 4)),
    "l2": (136, (72, 104, 176, 344, 480, 824, 1376), (6, 11, 11, 16, 16, 22, 6)),
}
# Trainable parameters of the published classifiers, and the width of their top convolution.
PUBLISHED = {
    "b0": (5_288_548, 1280),
    "b1": (7_794_184, 1280),
    "b2": (9_109_994, 1408),
    "b3": (12_233_232, 1536),
    "b4": (19_341_616, 1792),
    "b5": (30_389_784, 2048),
    "b6": (43_040_704, 2304),
    "b7": (66_347_960, 2560),
    "l2": (480_309_308, 5504),
}


def count(stem, widths, repeats):
    """Parameters by arithmetic: weights, batch norm's two, squeeze-excite's two layers with biases."""
    total, inputs = 27 * stem + 2 * stem, stem
    for kernel, expansion, width, blocks in zip(KERNELS, EXPANSIONS, widths, repeats, strict=True):
        for _ in range(blocks):
            hidden, squeezed = inputs * expansion, inputs // 4
            total += (inputs * hidden + 2 * hidden) * (expansion > 1)
            total += kernel**2 * hidden + 2 * hidden
            total += hidden * squeezed + squeezed + squeezed * hidden + hidden
            total += hidden * width + 2 * width
            inputs = width
    return total


@functools.cache
def shapes(name, scan=False):
    """Shapes of (outputs, variables) of a published network on an image of 32 x 32."""
    width, depth = VARIANTS[name]
    init = functools.partial(EfficientNet(width, depth, scan=scan).init_with_output, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
    "name",
    [name if name in ("b0", "b7") else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
)
def test_parameters_are_as_many_as_published(name):
    params = shapes(name)[1]["params"]
    found = sum(leaf.size for leaf in jax.tree.leaves(params))
    published, top = PUBLISHED[name]
    last = NETWORKS[name][1][-1]
    assert found == count(*NETWORKS[name])
    assert found == published - (last * top + 2 * top) - (top * 1000 + 1000)
    assert len([key for key in params if key.startswith("stage")]) == sum(NETWORKS[name][2])


@pytest.mark.parametrize(("name", "blocks", "width"), [("b7", 55, 640), ("l2", 88, 1376)])
def test_align_and_noisy_students_networks(name, blocks, width):
    outputs, variables = shapes(name)
    assert len([key for key in variables["params"] if key.startswith("stage")]) == blocks
    assert outputs["pooled"].shape == (1, width)
    assert outputs["patches"].shape == (1, 1, 1, width)


def test_l2_has_467_million_parameters():
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes("l2")[1]["params"]))
    assert round(found / 1e6, 1) == 467.2


def test_the_scanned_l2_is_the_unrolled_one_in_stacks():
    outputs, variables = shapes("l2", scan=True)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 467_219_796
    assert variables["params"]["stage5_block_stack"]["depthwise"].shape == (21, 5, 5, 824 * 6)
    unstacked = jax.eval_shape(functools.partial(unstack_layers, stacks=EfficientNet.stacks), variables)
    assert (outputs, unstacked) == shapes("l2")


@pytest.mark.parametrize("name", VARIANTS)
def test_channels_and_repeats_scale_as_published(name):
    (width, depth), (stem, widths, repeats) = VARIANTS[name], NETWORKS[name]
    assert round_channels(32, width) == stem
    assert tuple(round_channels(c, width) for c in NETWORKS["b0"][1]) == widths
    assert tuple(round_repeats(r, depth) for r in NETWORKS["b0"][2]) == repeats


def test_channels_never_shrink_by_over_a_tenth():
    assert round_channels(10, 1.0) == 16  # the nearest multiple, 8, is a fifth less
    assert round_channels(1, 0.1) == 8


@pytest.mark.parametrize(
    ("size", "expected"), [((289, 289), (10, 10)), ((224, 224), (7, 7)), ((65, 33), (3, 2))]
)
def test_each_of_five_halvings_rounds_up(size, expected):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(EfficientNet().init_with_output, jax.random.key(0), images)
    assert outputs["patches"].shape == (2, *expected, 320)
    assert outputs["pooled"].shape == (2, 320)


@pytest.mark.parametrize(("size", "expected"), [((289, 289), (9, 9)), ((96, 75), (3, 2)), ((64, 64), (2, 2))])
def test_with_fixed_padding_each_halving_of_an_odd_map_rounds_down(size, expected):
    """COYO's 289, 144, 72, 36, 18, 9, where "same" has 145, 73, 37, 19, 10."""
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(EfficientNet(padding="fixed").init_with_output, jax.random.key(0), images)
    assert outputs["patches"].shape == (2, *expected, 320)


def test_an_image_of_which_nothing_is_left_is_named():
    images = jax.ShapeDtypeStruct((1, 20, 64, 3), jnp.float32)
    with pytest.raises(ValueError, match="nothing is left of 20 x 64 pixels"):
        jax.eval_shape(EfficientNet(padding="fixed", depth=0.1).init, jax.random.key(0), images)
    with pytest.raises(ValueError, match="padding is 'valid'; there are same, fixed"):
        jax.eval_shape(EfficientNet(padding="valid").init, jax.random.key(0), images)


def test_bfloat16_computes_in_bfloat16_and_pools_and_keeps_parameters_in_float32():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    model = EfficientNet(dtype=jnp.bfloat16)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert (outputs["patches"].dtype, outputs["pooled"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_pooled_is_the_spatial_mean_of_patches():
    model = EfficientNet(width=0.25, stages=(Stage(3, 64, 1, 2, 2),))
    images = jax.random.normal(jax.random.key(1), (2, 10, 14, 3))
    outputs, _ = jax.jit(model.init_with_output)(jax.random.key(0), images)
    np.testing.assert_allclose(outputs["pooled"], outputs["patches"].mean((1, 2)), atol=1e-6)


RATE, EXAMPLES = 0.2, 512


@functools.cache
def block_outputs():
    """(inputs, a block's output without and with drop-connect) of equal examples, [C, B]."""
    block = MBConv(Stage(3, 8, 1, 1, 2), BatchNorm)
    # Two kinds of examples: batch norm makes nothing of a batch whose examples are all equal.
    x = jax.random.normal(jax.random.key(0), (8, 2, 1, 1)).repeat(EXAMPLES // 2, axis=1)
    init = functools.partial(block.init, drop_rate=None, train=False)
    variables = jax.jit(init)(jax.random.key(1), x)

    @functools.partial(jax.jit, static_argnums=0)
    def run(rate):
        rngs = dict(dropout=jax.random.key(2))
        return block.apply(variables, x, rate, train=True, rngs=rngs, mutable=["batch_stats"])[0]

    return (np.asarray(a)[:, :, 0, 0] for a in (x, run(None), run(RATE)))


def test_drop_connect_drops_whole_examples_and_scales_up_the_others():
    x, full, dropped = block_outputs()
    branch, kept = full - x, dropped - x
    gone = (np.abs(kept) < 1e-6).all(0)
    assert np.abs(branch).min(1).max() > 0.1
    np.testing.assert_allclose(kept[:, ~gone], branch[:, ~gone] / (1 - RATE), rtol=1e-4, atol=1e-5)
    # Six standard deviations of a binomial's fraction.
    assert abs(gone.mean() - RATE) < 6 * np.sqrt(RATE * (1 - RATE) / EXAMPLES)


def test_evaluation_drops_nothing_and_needs_no_key():
    x = jax.random.normal(jax.random.key(0), (8, 4, 3, 3))
    block = MBConv(Stage(3, 8, 1, 1, 2), BatchNorm)
    variables = jax.jit(functools.partial(block.init, drop_rate=None, train=False))(jax.random.key(1), x)
    evaluate = jax.jit(lambda v, x: [block.apply(v, x, rate, train=False) for rate in (None, 0.9)])
    np.testing.assert_array_equal(*evaluate(variables, x))


def test_drop_connect_rises_linearly_over_the_blocks():
    rates = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, MBConv) and context.method_name == "__call__":
            rates.append(args[1])
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model = EfficientNet(drop_connect=0.2)
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)


def test_bn_group_and_momentum_reach_every_batch_norm():
    found = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            found.append((context.module.bn_group, context.module.momentum, context.module.epsilon))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model = EfficientNet(bn_group=2, bn_momentum=0.9)
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    assert found == [(2, 0.9, 1e-3)] * (1 + 2 + 15 * 3)  # the first block has no expansion


def test_an_encoder_from_a_config_has_its_strides():
    config = dict(kind="efficientnet", width=1.0, depth=1.0, strides=(1, 1, 2, 1, 1, 1, 1), stem_stride=1)
    model = encoders.build(config, "bfloat16", vocab_size=0, text_length=0)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert outputs["patches"].shape == (1, 4, 4, 320)
    assert outputs["patches"].dtype == jnp.bfloat16


def test_an_encoder_needs_seven_strides():
    with pytest.raises(ValueError, match="shorter"):
        encoders.build(dict(kind="efficientnet", strides=(1, 2)), "float32", vocab_size=0, text_length=0)
