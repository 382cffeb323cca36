"""UPerNet's head against transformers', and the simple feature pyramid against PyTorch's layers."""

import jax
import numpy as np
import pytest

from big_ssl.models.simple_feature_pyramid import SimpleFeaturePyramid
from big_ssl.objectives.segmentation import UPerNetSegmentation

pytest.importorskip("torch", reason="make parity installs PyTorch")
pytest.importorskip("transformers", reason="make parity installs transformers")

import torch

from tests.parity import simple_pyramid_peers, upernet_peers

pytestmark = pytest.mark.parity


def assert_same_shapes(ours, theirs):
    assert jax.tree.map(np.shape, dict(ours)) == jax.tree.map(np.shape, theirs)


def test_upernet_is_transformers():
    peer, maps = upernet_peers.head(), upernet_peers.maps()
    head = UPerNetSegmentation(upernet_peers.CLASSES, channels=upernet_peers.CHANNELS)
    variables, inputs = upernet_peers.variables(peer), dict(image=dict(pyramid=maps))
    assert_same_shapes(jax.eval_shape(head.init, jax.random.key(0), inputs), variables)
    actual = jax.jit(head.apply)(variables, inputs)["logits"]
    np.testing.assert_allclose(actual, upernet_peers.logits(peer, maps), rtol=1e-4, atol=1e-4)


def test_the_simple_pyramid_is_that_of_its_layers_in_pytorch():
    torch.manual_seed(0)
    theirs = simple_pyramid_peers.simple_pyramid(16, 8)
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 16)).astype(np.float32)
    ours, params = SimpleFeaturePyramid(8), simple_pyramid_peers.parameters(theirs)
    assert_same_shapes(jax.eval_shape(lambda: ours.init(jax.random.key(0), (x,), (16,)))["params"], params)
    expected = simple_pyramid_peers.outputs(theirs, x)
    for actual, level in zip(ours.apply({"params": params}, (x,), (16,)), expected, strict=True):
        np.testing.assert_allclose(actual, level, rtol=1e-4, atol=1e-4)
