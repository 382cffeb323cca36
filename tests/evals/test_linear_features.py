"""What DINOv2's linear heads read of a ViT, against its own layers."""

import functools

import jax
import numpy as np
import pytest

from big_ssl.evals.linear_features import check_layers, linear_features
from big_ssl.models import vit

MODEL = vit.ViT(**vit.DINOV2, patch=4, width=8, depth=2, heads=2, image_size=8, registers=2)
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)


def test_linear_features_are_class_tokens_in_order_and_the_mean_of_the_patches():
    """The mean of the last layer's patches, registers left out."""
    rng, shapes = np.random.default_rng(1), jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    features = jax.jit(functools.partial(linear_features, MODEL, count=2))(variables, IMAGES)
    layers = jax.jit(functools.partial(MODEL.apply, intermediate=(0, 1)))(variables, IMAGES)["layers"]
    assert (features.shape, features.dtype) == ((2, 3, 8), np.float32)
    np.testing.assert_allclose(features[:, :2], layers["cls"].swapaxes(0, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features[:, 2], layers["patches"][1].mean(1), rtol=1e-5, atol=1e-5)


def test_layers_that_the_encoder_lacks_are_named():
    with pytest.raises(ValueError, match="the last 3 layers are requested; the image encoder has 2"):
        check_layers(MODEL, 3)
    with pytest.raises(ValueError, match="ViT, has no class token; it must be a ViT with one"):
        check_layers(MODEL.clone(class_token=False), 1)
