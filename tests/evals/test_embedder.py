"""Embedding in padded, sharded batches gives what embedding one by one gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.evals.embedder import Towers
from big_ssl.parallel import mesh as mesh_lib

WEIGHTS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


class _Linear:
    """A system whose towers are one matrix; notes the batches it is traced for."""

    def __init__(self):
        self.traced = []

    def encode(self, variables, term, views):
        ((name, inputs),) = views.items()
        rows = inputs["ids"] if name == "text" else inputs.reshape(len(inputs), -1)
        self.traced.append((term, name, len(rows)))
        return {name: dict(pooled=rows.astype(jnp.float32) @ variables["w"])}

    def image_tower(self, variables, images):
        return self, variables, images.astype(jnp.float32) / 255

    def head(self, variables, term, outputs):
        ((name, output),) = outputs.items()
        return {name: output["pooled"] / jnp.linalg.norm(output["pooled"], axis=1, keepdims=True)}


def _tokenizer(texts):
    ids = np.stack([np.resize(np.frombuffer(text.encode(), np.uint8), 12) for text in texts])
    return dict(ids=ids.astype(np.int32), mask=np.ones_like(ids, bool))


def _expected(rows):
    features = rows.astype(np.float64) @ WEIGHTS
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _towers(system, devices, batch_size):
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    return Towers(system, "contrastive", _tokenizer, mesh, None, batch_size).at(dict(w=WEIGHTS))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 33])
def test_any_number_of_pictures(count, devices):
    system = _Linear()
    embedder = _towers(system, devices, 7)
    images = np.random.default_rng(1).integers(0, 256, (count, 2, 2, 3), np.uint8)
    found = embedder.images(images)
    assert found.shape == (count, 5)
    np.testing.assert_allclose(found, _expected(images.reshape(count, -1)), atol=1e-5)
    np.testing.assert_allclose(embedder.pooled(images), images.reshape(count, -1) @ WEIGHTS, rtol=1e-4)
    # Compiled once, for the next multiple of the devices.
    assert system.traced == [("contrastive", "image", 7 if devices == 1 else 8)]


def test_texts_go_through_the_tokenizer():
    texts = [f"text {i}" for i in range(11)]
    found = _towers(_Linear(), 8, 8).texts(texts)
    np.testing.assert_allclose(found, _expected(_tokenizer(texts)["ids"]), atol=1e-5)


@pytest.mark.parametrize("size", [7, 3])
def test_who_looks_inside_gets_the_tower(size):
    """In batches of the size that is asked for, compiled once for each look and its options."""
    system, traced = _Linear(), []

    def look(module, variables, images, power):
        traced.append((module, images.shape))
        return (images.reshape(len(images), -1) @ variables["w"]) ** power

    embedder = _towers(system, 1, 7)
    images = np.random.default_rng(1).integers(0, 256, (9, 2, 2, 3), np.uint8)
    expected = images.reshape(9, -1) / 255 @ WEIGHTS
    for _ in range(2):
        found = embedder.inside(look, images, 2, **({} if size == 7 else dict(size=size)))
        np.testing.assert_allclose(found, expected**2, rtol=1e-4, atol=1e-5)
    assert traced == [(system, (size, 2, 2, 3))]
    np.testing.assert_allclose(embedder.inside(look, images, 1), expected, rtol=1e-4, atol=1e-5)
