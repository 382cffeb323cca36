"""The simple feature pyramid's sizes, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models.simple_feature_pyramid import SimpleFeaturePyramid


def sides(neck, grid, stride):
    maps = (jax.ShapeDtypeStruct((2, *grid, 16), np.float32),)
    outputs = jax.eval_shape(lambda x: neck.init_with_output(jax.random.key(0), x, (stride,))[0], maps)
    assert {x.shape[::3] for x in outputs} == {(2, neck.channels)}
    return [x.shape[1:3] for x in outputs]


def test_outputs_have_their_strides_whatever_the_patch():
    neck = SimpleFeaturePyramid(8)
    expected = [(56, 84), (28, 42), (14, 21), (7, 11)]  # of 224 x 336 pixels
    assert sides(neck, (14, 21), 16) == expected
    assert sides(neck, (16, 24), 14) == expected
    assert sides(neck, (28, 42), 8) == expected
    assert sides(SimpleFeaturePyramid(8, (8, 16, 32, 64)), (14, 21), 16) == [*expected[1:], (4, 6)]


def test_a_map_of_stride_14_keeps_its_places_when_it_is_resized():
    """A linear ramp over the image stays that ramp, at the centres of the new positions."""
    ramp = jnp.broadcast_to((jnp.arange(16.0)[:, None] + 0.5) * 14, (1, 16, 16))[..., None] * jnp.ones(2)
    neck = SimpleFeaturePyramid(2, (16,))
    params = neck.init(jax.random.key(0), (ramp,), (14,))
    inputs = []

    def keep(call, args, kwargs, context):
        inputs.extend(args if context.module.name == "level0_conv1" else ())
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        neck.apply(params, (ramp,), (14,))
    np.testing.assert_allclose(inputs[0][0, 1:-1, 0, 0], (np.arange(14)[1:-1] + 0.5) * 16, rtol=1e-5)


def test_several_maps_and_uneven_strides_are_refused():
    x = jnp.ones((1, 4, 4, 8))
    with pytest.raises(ValueError, match=r"strides \(4, 8\); it takes one, and neck.kind fpn takes several"):
        SimpleFeaturePyramid(8).init(jax.random.key(0), (x, x), (4, 8))
    with pytest.raises(ValueError, match=r"strides are \(4, 12\); they must be powers of two apart"):
        SimpleFeaturePyramid(8, (4, 12)).init(jax.random.key(0), (x,), (16,))
