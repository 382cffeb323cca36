"""CLIP's batch of 32,768 pairs, with toy encoders: one whole training step on eight devices."""

import os

import jax
import numpy as np
import pytest

from big_ssl.data import pipeline
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.random_keys import step_key
from big_ssl.training import build, setup
from configs import clip

REAL = 32_768
# Sums of many float32 numbers, in another order.
TOLERANCE = 1e-5
# All logits in both directions, with gradients: 20.3 GiB by the compiler's count.
GATHERED_BYTES = 26 * 2**30


def config_of(implementation, size):
    """The tiny preset with even narrower encoders, small images and short texts."""
    config = clip.get_config("tiny").to_dict()
    pairs = config["streams"]["pairs"]
    pairs.update(batch_size=size)
    pairs["data"]["fields"]["image"]["crop"].update(resize=18, size=16)
    pairs["objectives"]["contrastive"].update(embed_dim=8, implementation=implementation)
    config["encoders"]["image"].update(patch=16, width=8, depth=1, heads=1, image_size=16)
    config["encoders"]["text"].update(width=8, depth=1, heads=1, eot_id=None)
    config["learning_rate"].update(kind="linear", peak=1e-3, warmup_steps=0)
    config["tokenizer"].update(vocabulary="", length=4)
    return config | dict(ema=0.0)


def random_batch(config):
    """Random images and texts."""
    rng, size = np.random.default_rng(0), config["streams"]["pairs"]["batch_size"]
    texts = dict(ids=rng.integers(0, 4096, (size, 4), dtype=np.int32), mask=np.ones((size, 4), bool))
    fields = build.stream_fields("pairs", config)
    marks = {name: np.zeros(size, bool) for name in pipeline.data_errors(fields)}
    images = rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)
    return dict(pairs=dict(image=images, text=texts, data_errors=marks))


def step_of(implementation, size):
    """(the first step's metrics with the gradient norm, the features of its loss)."""
    config = config_of(implementation, size)
    parts = setup.set_up(config)
    state, batch = parts.init(), mesh_lib.global_batch(parts.mesh, random_batch(config))
    features = jax.jit(fsdp.within(parts.mesh, parts.system.features))
    key = step_key(config["seed"], 0)
    actual = jax.device_get(features(state.params, state.mutable, batch, key)[0]["contrastive"])
    before = jax.device_get(state.params)
    state, metrics = parts.step(state, batch)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(state.params), before)
    assert min(jax.tree.leaves(moved)) > 0
    return {name: float(value) for name, value in metrics.items()}, actual


def plain_loss(features, rows=2_048):
    """The mean cross-entropy of both directions, from all logits, some rows at a time."""
    image, text = (features[name] / np.sqrt(features["temperature"]) for name in ("image", "text"))
    by_image, by_text = 0.0, np.zeros(len(text))
    for start in range(0, len(image), rows):
        # No logit is above 1 / temperature: the sums need no shift.
        weights = np.exp(image[start : start + rows] @ text.T)
        by_image += np.log(weights.sum(1, dtype=np.float64)).sum()
        by_text += weights.sum(0, dtype=np.float64)
    positives = (image * text).sum(1, dtype=np.float64).mean()
    return (by_image / len(image) + np.log(by_text).mean()) / 2 - positives


def available_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


@pytest.mark.parametrize(
    ("implementation", "size"),
    [
        pytest.param("ring", REAL, marks=pytest.mark.slow),
        pytest.param("gathered", REAL // 4, marks=pytest.mark.slow),
        pytest.param(
            "gathered",
            REAL,
            marks=[
                pytest.mark.soak,
                pytest.mark.skipif(available_bytes() < GATHERED_BYTES, reason="needs 26 GiB of free memory"),
            ],
        ),
    ],
)
def test_a_step_at_the_real_batch(implementation, size):
    metrics, features = step_of(implementation, size)
    assert metrics["loss"] == pytest.approx(plain_loss(features), rel=TOLERANCE)
    assert np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 0


@pytest.mark.slow
def test_all_implementations_agree_at_a_batch_that_fits():
    dense, features = step_of("dense", 4_096)
    assert dense["loss"] == pytest.approx(plain_loss(features), rel=TOLERANCE)
    for implementation in ("ring", "gathered"):
        metrics, _ = step_of(implementation, 4_096)
        assert metrics["loss"] == pytest.approx(dense["loss"], rel=TOLERANCE)
        assert metrics["grad_norm"] == pytest.approx(dense["grad_norm"], rel=TOLERANCE)
