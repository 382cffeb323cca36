"""DPT's depth head against what make_depth_goldens.py has written down."""

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from big_ssl.objectives.depth import DPTDepth
from tests.parity import goldens

CLOSE = dict(rtol=1e-4, atol=1e-4)


def head_inputs(tokens, grid):
    """The encoder outputs of tokens [4, B, 1 + N, D] of a ViT's layers."""
    layers = tuple(dict(cls=layer[:, 0], patches=layer[:, 1:]) for layer in tokens)
    last = tokens[-1][:, 1:]
    return dict(image=dict(layers=layers, pyramid=(last.reshape(len(last), *grid, -1),)))


def test_transformers_depths():
    weights, arrays = goldens.golden("dpt")
    params = unflatten_dict(weights, sep="/")
    hidden = [params["decoder"][f"input{i}"]["kernel"].shape[2] for i in range(4)]
    bins, channels = params["output2"]["bias"].size, params["project"]["bias"].size
    head = DPTDepth(bins=bins, channels=channels, hidden=hidden)
    inputs = head_inputs(arrays["tokens"], arrays["grid"])
    result = jax.jit(head.apply, **goldens.UNOPTIMISED)(dict(params=params), inputs)
    assert result["depth"].shape == (1, 96, 64)
    np.testing.assert_allclose(result["depth"], arrays["depth"], **CLOSE)
