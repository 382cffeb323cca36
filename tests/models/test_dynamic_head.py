"""Dynamic Head's parts and the predictions on it; tests/parity compares the whole with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.models import dynamic_head

RNG = np.random.default_rng(0)
MAPS = tuple(RNG.normal(size=(2, *size, 8)).astype(np.float32) for size in ((3, 5), (2, 3)))


@pytest.mark.parametrize("shape", [(5, 7), (2, 1)])
def test_resizing_keeps_the_outermost_pixels(shape):
    x = RNG.normal(size=(1, 3, 4, 2)).astype(np.float32)
    found = np.asarray(dynamic_head.resize_align_corners(x, shape))
    rows, columns = (np.linspace(0, n - 1, m) for n, m in zip((3, 4), shape, strict=True))
    for i, y in enumerate(rows):
        for j, x_ in enumerate(columns):
            line = [np.interp(y, range(3), x[0, :, column, 1]) for column in range(4)]
            np.testing.assert_allclose(found[0, i, j, 1], np.interp(x_, range(4), line), atol=1e-5)
    np.testing.assert_allclose(found[:, 0, 0], x[:, 0, 0], atol=1e-6)


def test_dyrelu_starts_around_a_relu():
    squeeze = dict(kernel=np.ones((8, 2)), bias=np.ones(2))
    excite = dict(kernel=np.zeros((2, 32)), bias=np.zeros(32))
    y = jax.jit(dynamic_head.DyReLU().apply)(dict(params=dict(squeeze=squeeze, excite=excite)), MAPS[0])
    np.testing.assert_allclose(y, np.maximum(MAPS[0], 0), atol=1e-6)


def test_maps_that_are_not_halved_are_named():
    maps = (np.zeros((1, 6, 6, 8)), np.zeros((1, 4, 3, 8)))
    message = r"dynamic head: a map of \(6, 6\) is followed by one of \(4, 3\), not half as large, \(3, 3\)"
    with pytest.raises(ValueError, match=message):
        dynamic_head.DynamicHead(8, 1, groups=4).init(jax.random.key(0), maps)


def test_channels_that_are_no_multiple_of_the_groups_are_named():
    with pytest.raises(ValueError, match="dynamic head: 8 channels are no multiple of 16 groups"):
        dynamic_head.DynamicHead(8, 1).init(jax.random.key(0), MAPS)


def test_the_misindexed_reading():
    """The first numbers of an image in the order [K, H, W], in the shape [K, h, w]."""
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    found = dynamic_head._misindexed(jnp.asarray(x), (2, 2))
    for image, values in zip(x, found, strict=True):
        expected = image.transpose(2, 0, 1).reshape(-1)[: 5 * 4].reshape(5, 2, 2)
        np.testing.assert_array_equal(values, expected.transpose(1, 2, 0))


def test_predictions_of_a_classifier():
    module = dynamic_head.Predictions(3)
    params = jax.jit(module.init)(jax.random.key(0), MAPS)["params"]
    params["box_scale"] = jnp.array([1.0, 2.0])
    found = jax.tree.map(np.asarray, jax.jit(module.apply)(dict(params=params), MAPS))
    probabilities = [1 / (1 + np.exp(-x)) for x in found["logits"]]
    for i, x in enumerate(MAPS):
        np.testing.assert_allclose(probabilities[i], np.full((*x.shape[:3], 3), 0.01), atol=0.01)
        box = np.asarray(params["box"]["kernel"])[0, 0]
        np.testing.assert_allclose(found["deltas"][i], (i + 1) * (x @ box), atol=1e-5)
        assert found["centerness"][i].shape == x.shape[:3]


def test_predictions_of_texts():
    """Cosines by a temperature; texts need not be those of training, nor as many."""
    module = dynamic_head.Predictions(0, text_width=4, temperature=0.5)
    texts = RNG.normal(size=(6, 4)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    params = jax.jit(module.init)(jax.random.key(0), MAPS, texts[:2])["params"]
    found = jax.jit(module.apply)(dict(params=params), MAPS, texts)["logits"]
    for x, logits in zip(MAPS, found, strict=True):
        projected = x @ np.asarray(params["text_projection"]["kernel"])[0, 0]
        cosines = projected / np.linalg.norm(projected, axis=-1, keepdims=True) @ texts.T
        np.testing.assert_allclose(logits, cosines / 0.5 - np.log(99), atol=1e-4)
    with pytest.raises(ValueError, match="text_width is 4, and texts are not given"):
        module.apply(dict(params=params), MAPS)
    with pytest.raises(ValueError, match=r"text_width is 0, and texts have the shape \(6, 4\)"):
        dynamic_head.Predictions(3).init(jax.random.key(0), MAPS, texts)
