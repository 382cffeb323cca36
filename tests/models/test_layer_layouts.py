"""Weights of unrolled layers as a stack, and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models.layer_layouts import stack_layers, unstack_layers

STACKS = {"layer": 0, r"stage\d+_block": 1}


def block(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {
        "dense": {"kernel": rng.normal(size=(2, 3)).astype(dtype)},
        "scale": rng.normal(size=3).astype(dtype),
    }


def unrolled():
    """More than ten layers, so that their order is not the alphabet's; two collections; two towers."""
    stage = {f"stage{i}_block{j}": block(10 * i + j) for i in range(2) for j in range(3)}
    tower = {"stem": np.ones(2), "layer_norm": np.ones(3), "empty": {}} | stage
    layers = {f"layer{i}": block(100 + i) for i in range(12)}
    return {"params": {"image": tower, "text": layers}, "batch_stats": {"image": stage}}


def equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_layers_from_the_first_on_become_a_stack_in_their_order():
    stacked = stack_layers(unrolled(), STACKS)
    assert set(stacked["params"]["text"]) == {"layer_stack"}
    names = {"stage0_block0", "stage0_block_stack", "stage1_block0", "stage1_block_stack"}
    assert set(stacked["batch_stats"]["image"]) == names
    assert set(stacked["params"]["image"]) == names | {"stem", "layer_norm", "empty"}
    kernel = stacked["params"]["text"]["layer_stack"]["dense"]["kernel"]
    assert kernel.shape == (12, 2, 3)
    for i in range(12):
        np.testing.assert_array_equal(kernel[i], block(100 + i)["dense"]["kernel"])
    scale = stacked["batch_stats"]["image"]["stage1_block_stack"]["scale"]
    np.testing.assert_array_equal(scale, [block(11)["scale"], block(12)["scale"]])


def test_the_round_trip_is_exact_both_ways():
    stacked = stack_layers(unrolled(), STACKS)
    equal(unstack_layers(stacked, STACKS), unrolled())
    equal(stack_layers(unstack_layers(stacked, STACKS), STACKS), stacked)


def test_what_has_the_layout_already_stays():
    stacked = stack_layers(unrolled(), STACKS)
    equal(stack_layers(stacked, STACKS), stacked)
    equal(unstack_layers(unrolled(), STACKS), unrolled())


def test_jax_arrays_under_jit_as_well():
    layers = {f"layer{i}": block(i, np.float32) for i in range(3)}
    stack, unstack = (functools.partial(f, stacks={"layer": 0}) for f in (stack_layers, unstack_layers))
    stacked = jax.jit(stack)(layers)
    assert isinstance(stacked["layer_stack"]["scale"], jnp.ndarray)
    equal(jax.jit(unstack)(stacked), layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers.pop("layer1"), "stack_layers: text/layer1/dense/kernel is missing"),
        (lambda layers: layers.pop("layer0"), "stack_layers: text/layer0/dense/kernel is missing"),
        (lambda layers: layers["layer2"].pop("scale"), "stack_layers: text/layer2/scale is missing"),
        (
            lambda layers: layers["layer1"].update(scale=np.ones(4)),
            "stack_layers: text/layer1/scale is float64[4], but text/layer0/scale is float64[3]",
        ),
        (
            lambda layers: layers["layer1"].update(scale=np.ones(3, np.float32)),
            "stack_layers: text/layer1/scale is float32[3], but text/layer0/scale is float64[3]",
        ),
        (
            lambda layers: layers.update(layer_stack=block(0)),
            "layers: text/layer_stack/dense/kernel is there both as a layer and in a stack",
        ),
        (lambda layers: layers.clear(), "stack_layers: there are no layers layer<i>"),
    ],
)
def test_layers_that_do_not_fit_together_are_named(change, message):
    layers = {f"layer{i}": block(i) for i in range(4)}
    change(layers)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        stack_layers({"text": layers}, {"layer": 0})
    assert str(caught.value) == message


def test_a_stack_of_two_lengths_is_named():
    stacked = {"layer_stack": {"a": np.ones((3, 2)), "b": np.ones((2, 2))}}
    message = "unstack_layers: layer_stack/b has 2 layers, others of its stack 3"
    with pytest.raises(ValueError, match=message):
        unstack_layers(stacked, {"layer": 0})
    with pytest.raises(ValueError, match="unstack_layers: there are no layers block<i>"):
        unstack_layers(stacked, {"block": 0})
