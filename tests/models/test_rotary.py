"""Rotary positions, against complex numbers; and a ViT that has them instead of a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import vit
from big_ssl.models.layer_layouts import stack_layers
from big_ssl.models.rotary import apply_rope, rope_periods, rope_sincos

RNG = np.random.default_rng(0)
TINY = vit.ViT(**vit.DINOV2, patch=4, width=16, depth=2, heads=2, image_size=8, registers=1, rope_base=100.0)
PICTURES = RNG.normal(size=(2, 8, 12, 3)).astype(np.float32)


def test_pairs_turn_as_complex_numbers():
    """Frequencies 1 and 1/10 turns of y, then of x, of heads of width 8."""
    x = RNG.normal(size=(2, 1 + 6, 3, 8))
    found = np.asarray(apply_rope(jnp.float32(x), rope_sincos((2, 3), 8, 100.0)))
    np.testing.assert_array_equal(found[:, 0], np.float32(x[:, 0]))
    z = x[..., :4] + 1j * x[..., 4:]
    for row, y in enumerate((-0.5, 0.5)):
        for column, across in enumerate((-2 / 3, 0, 2 / 3)):
            turns = np.exp(2j * np.pi * np.array([y, y / 10, across, across / 10]))
            token = 1 + 3 * row + column
            expected = z[:, token] * turns
            np.testing.assert_allclose(found[:, token, :, :4], expected.real, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found[:, token, :, 4:], expected.imag, rtol=1e-4, atol=1e-5)


def test_positions_of_a_reference_grid():
    """y is 3 and 6, x is 2, 4 and 6, of a grid of 2 x 3 whose positions are those of one of 6 x 6."""
    found = rope_sincos((2, 3), 8, 100.0, side=6)
    angles = np.array([[y, y / 10, x, x / 10] * 2 for y in (3, 6) for x in (2, 4, 6)])
    np.testing.assert_allclose(found.cos, np.cos(angles), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.sin, np.sin(angles), rtol=1e-5, atol=1e-6)


def test_products_depend_on_relative_positions_only():
    query, key = (np.tile(RNG.normal(size=(1, 1, 1, 8)), (1, 4, 1, 1)) for _ in range(2))
    by = rope_sincos((1, 4), 8, 100.0)
    products = np.einsum(
        "bqhd,bkhd->qk", apply_rope(jnp.float32(query), by), apply_rope(jnp.float32(key), by)
    )
    for offset in range(-3, 4):
        diagonal = np.diagonal(products, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert np.ptp(products) > 0.1


@functools.cache
def variables():
    made = jax.eval_shape(TINY.init, jax.random.key(0), PICTURES)
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), made)


def test_a_tower_without_a_table():
    """It tells places apart, its attention does too, and training may stretch them."""
    assert "position_embedding" not in variables()["params"]
    run = jax.jit(TINY.apply)
    turned = PICTURES[:, :, ::-1]
    straight, mirrored = (run(variables(), x)["patches"] for x in (PICTURES, turned))
    table_free = TINY.clone(rope_base=None)
    assert "position_embedding" in jax.eval_shape(table_free.init, jax.random.key(0), PICTURES)["params"]
    assert not np.allclose(np.sort(straight, axis=1), np.sort(mirrored, axis=1), atol=1e-3)
    attention = vit.attention_maps(TINY, variables(), PICTURES)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)
    stretched = TINY.clone(rope_rescale=2.0)
    apply = functools.partial(stretched.apply, variables(), PICTURES, rngs=dict(dropout=jax.random.key(1)))
    np.testing.assert_allclose(apply(train=False)["patches"], straight, rtol=1e-5, atol=1e-5)
    assert not np.allclose(apply(train=True)["patches"], straight, atol=1e-3)


def test_layers_in_a_loop_know_the_places():
    looped = TINY.clone(scan=True, remat="full")
    params = stack_layers(variables()["params"], vit.ViT.stacks)
    found = jax.jit(looped.apply)({"params": params}, PICTURES)
    expected = jax.jit(TINY.apply)(variables(), PICTURES)
    np.testing.assert_allclose(found["patches"], expected["patches"], rtol=1e-4, atol=1e-4)


def test_projections_without_biases():
    """DINOv3's keys have none; its largest model's queries and values neither."""
    for qkv_bias in ("qv", ""):
        model = TINY.clone(qkv_bias=qkv_bias)
        layer = jax.eval_shape(model.init, jax.random.key(0), PICTURES)["params"]["layer0"]
        biased = "".join(name[0] for name in ("query", "key", "value") if "bias" in layer[name])
        assert biased == qkv_bias
        assert "bias" in layer["out"]
    with pytest.raises(ValueError, match="transformer: qkv_bias is 'qo'; it has letters of 'qkv'"):
        jax.eval_shape(TINY.clone(qkv_bias="qo").init, jax.random.key(0), PICTURES)


def test_rounded_periods():
    """bfloat16 has three digits: of periods of 1, 3.16 and 31.6, the first is exact."""
    exact, rounded = (rope_periods(16, 100.0, dtype) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact, 100 ** np.array([0, 0.25, 0.5, 0.75]), rtol=1e-6)
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16).astype(np.float32))
    assert rounded[0] == exact[0]
    assert rounded[1] != exact[1]
    ropes = [rope_sincos((1, 4), 16, 100.0, dtype=dtype).cos for dtype in ("float32", "bfloat16")]
    assert 1e-4 < np.abs(ropes[0] - ropes[1]).max() < 0.05


def test_what_does_not_go_together_is_named():
    with pytest.raises(ValueError, match="rope_base wants heads of a multiple of 4, and theirs is 6"):
        rope_sincos((1, 1), 6, 100.0)
    with pytest.raises(ValueError, match="with rope_base every patch has its place"):
        jax.eval_shape(TINY.clone(patch_dropout=0.5).init, jax.random.key(0), PICTURES)
