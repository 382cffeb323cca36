"""The feature pyramid against torchvision's, all parameters random."""

import jax
import numpy as np
import pytest

from big_ssl.models.feature_pyramid import FeaturePyramid

pytest.importorskip("torch", reason="make parity installs PyTorch")
pytest.importorskip("torchvision", reason="torchvision has the feature pyramid")

from tests.parity import pyramid_peers

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", pyramid_peers.SIZES)
def test_feature_pyramid(name):
    peer, maps = pyramid_peers.feature_pyramid(), pyramid_peers.maps(name)
    module = FeaturePyramid(channels=pyramid_peers.CHANNELS)
    apply = jax.jit(lambda maps: module.apply({"params": pyramid_peers.params(peer)}, maps, (8, 16, 32)))
    for ours, theirs in zip(apply(maps), pyramid_peers.run(peer, maps), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
