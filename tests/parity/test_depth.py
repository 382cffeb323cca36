"""DPT's depth head against transformers' neck and head, all parameters random."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="make parity installs PyTorch")
pytest.importorskip("transformers", reason="make parity installs transformers")

from big_ssl.objectives.depth import DPTDepth
from tests.parity import depth_peers
from tests.parity.test_depth_goldens import CLOSE, head_inputs

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", [0, 1])
def test_depths_by_regression(seed):
    peer, tokens = depth_peers.dpt(seed=seed), depth_peers.tokens(seed + 2)
    expected = np.maximum(depth_peers.run(peer, tokens)[..., 0], 0) + 1e-3
    assert np.ptp(expected) > 1
    head = DPTDepth(bins=0, channels=depth_peers.CHANNELS, hidden=depth_peers.HIDDEN, max_depth=1e3)
    variables = dict(params=depth_peers.params(peer))
    result = jax.jit(head.apply)(variables, head_inputs(tokens, depth_peers.GRID))
    np.testing.assert_allclose(result["depth"], expected, **CLOSE)


def test_depths_by_bins():
    peer, tokens = depth_peers.dpt(256), depth_peers.tokens()
    head = DPTDepth(channels=depth_peers.CHANNELS, hidden=depth_peers.HIDDEN)
    variables = dict(params=depth_peers.params(peer))
    result = jax.jit(head.apply)(variables, head_inputs(tokens, depth_peers.GRID))
    expected = depth_peers.bins(depth_peers.run(peer, tokens))
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(result["depth"], expected, **CLOSE)
