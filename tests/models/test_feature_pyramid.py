"""The feature pyramid: torchvision's outputs, odd maps, and encoders whose strides do not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from big_ssl.models import necks
from big_ssl.models.feature_pyramid import FeaturePyramid, upsample_nearest
from tests.parity import goldens


@functools.cache
def module_and_variables():
    params = unflatten_dict(goldens.golden("feature_pyramid")[0], sep="/")
    return FeaturePyramid(channels=5), {"params": params}


@pytest.mark.parametrize("name", ["odd", "even"])
def test_torchvisions_outputs(name):
    module, variables = module_and_variables()
    arrays = goldens.golden("feature_pyramid")[1]
    # A map of stride 4, which an encoder has too, is not read.
    maps = [jnp.zeros((2, 3, 3, 1)), *(arrays[f"{name}_map{i}"] for i in range(3))]
    outputs = module.apply(variables, maps, (4, 8, 16, 32))
    assert len(outputs) == len(module.strides) == 5
    for i, ours in enumerate(outputs):
        np.testing.assert_allclose(ours, arrays[f"{name}_output{i}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 12), (10, 11), (13, 7), (5, 24)])
def test_nearest_upsampling(shape):
    x = np.random.default_rng(0).normal(size=(1, 5, 6, 2)).astype(np.float32)
    rows, columns = ([i * n // size for i in range(size)] for n, size in zip((5, 6), shape, strict=True))
    np.testing.assert_array_equal(upsample_nearest(x, shape), x[:, rows][:, :, columns])


@pytest.mark.parametrize("strides", [(14,), (4, 16, 32)])
def test_strides_that_no_map_has_are_named(strides):
    maps = [jnp.zeros((1, 4, 4, 2))] * len(strides)
    with pytest.raises(ValueError, match=r"^fpn: strides is \(8, 16, 32, 64, 128\); the encoder's maps"):
        FeaturePyramid(4).init(jax.random.key(0), maps, strides)


def test_a_neck_is_chosen_by_its_kind():
    neck = necks.build(dict(kind="fpn", channels=7, strides=(8, 16)), "bfloat16")
    assert neck == FeaturePyramid(channels=7, strides=(8, 16), dtype=jnp.dtype("bfloat16"))
    with pytest.raises(ValueError, match=r"^neck.kind is 'bifpn'; there are fpn, simple_feature_pyramid"):
        necks.build(dict(kind="bifpn"), "float32")
    with pytest.raises(ValueError, match=r"^neck: .*width"):
        necks.build(dict(kind="fpn", width=7), "float32")


def test_map_norm_is_a_layer_norm_of_each_map():
    """Torch's epsilon; the scale and bias of each are its own."""
    module, variables = module_and_variables()
    arrays = goldens.golden("feature_pyramid")[1]
    maps = [arrays[f"odd_map{i}"] for i in range(3)]
    module = module.clone(map_norm=True)
    rng = np.random.default_rng(0)
    norms = {
        f"map_norm{i}": {name: rng.normal(size=x.shape[-1:]).astype(np.float32) for name in ("scale", "bias")}
        for i, x in enumerate(maps)
    }
    params = variables["params"] | norms
    outputs = module.apply({"params": params}, maps, (8, 16, 32))
    normalised = [
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"]
        + norm["bias"]
        for x, norm in zip(maps, norms.values(), strict=True)
    ]
    expected = module_and_variables()[0].apply(variables, normalised, (8, 16, 32))
    for ours, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
