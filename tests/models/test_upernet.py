"""UPerNet and the simple feature pyramid against golden outputs of transformers and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from big_ssl.models.simple_feature_pyramid import SimpleFeaturePyramid
from big_ssl.models.upernet import adaptive_pool
from big_ssl.objectives.segmentation import UPerNetSegmentation
from tests.parity import goldens

FAST = goldens.UNOPTIMISED


def golden():
    weights, arrays = goldens.golden("segmentation")
    return unflatten_dict(weights, sep="/"), arrays


def test_transformers_upernet():
    weights, arrays = golden()
    maps = [arrays[f"map{i}"] for i in range(4)]
    head = UPerNetSegmentation(5, channels=6)
    apply = jax.jit(lambda maps: head.apply(weights["upernet"], dict(image=dict(pyramid=maps))), **FAST)
    np.testing.assert_allclose(apply(maps)["logits"], arrays["logits"], rtol=1e-4, atol=1e-4)


def test_vitdets_simple_feature_pyramid():
    weights, arrays = golden()
    neck = SimpleFeaturePyramid(4)
    apply = jax.jit(lambda x: neck.apply({"params": weights["pyramid"]}, (x,), (16,)), **FAST)
    for i, actual in enumerate(apply(arrays["pyramid_input"])):
        np.testing.assert_allclose(actual, arrays[f"pyramid_output{i}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("length", "side"), [(7, 3), (2, 6), (5, 1), (6, 6)])
def test_adaptive_pooling_takes_means_of_overlapping_windows(length, side):
    x = np.random.default_rng(0).normal(size=(1, length, 4, 2)).astype(np.float32)
    for i, row in enumerate(adaptive_pool(jnp.asarray(x), side)[0]):
        window = x[0, int(np.floor(i * length / side)) : int(np.ceil((i + 1) * length / side))]
        columns = [slice(int(np.floor(j * 4 / side)), int(np.ceil((j + 1) * 4 / side))) for j in range(side)]
        expected = [window[:, c].mean((0, 1)) for c in columns]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
