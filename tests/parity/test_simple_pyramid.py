"""The simple feature pyramid against its layers in PyTorch."""

import jax
import numpy as np
import pytest

from big_ssl.models.simple_feature_pyramid import SimpleFeaturePyramid

torch = pytest.importorskip("torch")

from tests.parity import simple_pyramid_peers  # noqa: E402

pytestmark = pytest.mark.parity


def test_the_simple_pyramid_is_that_of_its_layers_in_pytorch():
    torch.manual_seed(0)
    theirs = simple_pyramid_peers.simple_pyramid(16, 8)
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 16)).astype(np.float32)
    with torch.no_grad():
        expected = [level(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for level in theirs]
    ours = SimpleFeaturePyramid(8)
    params = simple_pyramid_peers.parameters(theirs)
    made = jax.eval_shape(lambda: ours.init(jax.random.key(0), (x,), (16,)))["params"]
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, params)
    for actual, level in zip(ours.apply({"params": params}, (x,), (16,)), expected, strict=True):
        np.testing.assert_allclose(actual, level, rtol=1e-4, atol=1e-4)
