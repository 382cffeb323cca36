"""Mixup and CutMix: what is mixed with what, and how much of each is said to be there."""

import functools

import jax
import numpy as np
import pytest

from big_ssl.data import mixing
from big_ssl.data.fields import Image
from big_ssl.random_keys import named_key
from tests import compiling

RNG = np.random.default_rng(0)
ROWS, HEIGHT, WIDTH = 64, 16, 12
IMAGES = RNG.uniform(1, 2, (ROWS, HEIGHT, WIDTH, 3)).astype(np.float32)
OTHERS = IMAGES.reshape(-1, 2, HEIGHT, WIDTH, 3)[:, ::-1].reshape(IMAGES.shape)


@functools.cache
def mixed(mixup, cutmix, group=2, seed=0):
    with compiling.quickly():
        return jax.device_get(compiled(mixup, cutmix, group)(jax.random.key(seed), IMAGES))


@functools.cache
def compiled(mixup, cutmix, group):
    return jax.jit(functools.partial(mixing.mix, mixup=mixup, cutmix=cutmix, mix_group=group))


def test_partners_are_neighbours():
    np.testing.assert_array_equal(mixing.partners(np.arange(6)), [1, 0, 3, 2, 5, 4])
    np.testing.assert_array_equal(mixing.partners(IMAGES), OTHERS)


def test_a_mixup_is_a_weighted_mean():
    found, share = mixed(0.8, 0.0)
    part = share[:, None, None, None]
    np.testing.assert_allclose(found, part * IMAGES + (1 - part) * OTHERS, rtol=1e-5)
    assert len(np.unique(share)) == ROWS // 2  # a draw for each group
    # Beta(0.8, 0.8) is symmetric and leans to both ends: its variance is 1 / (4 * 2.6).
    shares = np.concatenate([mixed(0.8, 0.0, seed=seed)[1][::2] for seed in range(16)])
    assert abs(shares.mean() - 0.5) < 0.06
    assert abs(shares.var() - 1 / 10.4) < 0.02


def test_a_cutmix_is_a_window_of_the_other():
    """Of the picture's aspect, but where the edges cut it; the share is exactly what is left."""
    found, share = mixed(0.0, 1.0)
    windows = 0
    for i in range(ROWS):
        other = (found[i] == OTHERS[i]).all(-1)
        np.testing.assert_array_equal(found[i][~other], IMAGES[i][~other])
        assert share[i] == pytest.approx(1 - other.mean(), abs=1e-6)
        rows, columns = np.flatnonzero(other.any(1)), np.flatnonzero(other.any(0))
        assert other.sum() == len(rows) * len(columns)  # a rectangle
        edges = other[0].any() or other[-1].any() or other[:, 0].any() or other[:, -1].any()
        if len(rows) and not edges:
            windows += 1
            assert abs(len(rows) / HEIGHT - len(columns) / WIDTH) <= 2 / WIDTH
    assert windows > 4
    # Uniform shares, of which the edges give some back: more than half is left on average.
    shares = np.concatenate([mixed(0.0, 1.0, seed=seed)[1][::2] for seed in range(16)])
    assert 0.55 < shares.mean() < 0.75


def test_of_both_each_is_used_half_of_the_time():
    cut = []
    for seed in range(8):
        found, _ = mixed(0.8, 1.0, seed=seed)
        own, other = ((found == x).all(-1) for x in (IMAGES, OTHERS))
        cut += list((own | other).all((1, 2))[::2])
    assert 0.38 < np.mean(cut) < 0.62


def test_a_group_is_mixed_alike():
    for group, draws in ((0, 1), (16, 4)):
        share = mixed(0.0, 1.0, group)[1].reshape(draws, -1)
        assert len(np.unique(share)) == draws
        assert (share == share[:, :1]).all()


@pytest.mark.parametrize("group", [3, 10, 128])
def test_groups_that_do_not_fit_are_named(group):
    with pytest.raises(ValueError, match=f"^mix_group is {group}; it must be even, and divide a batch"):
        mixing.mix(jax.random.key(0), IMAGES, 0.8, 1.0, group)


@pytest.mark.slow
def test_a_view_of_crops_mixes_all_of_a_pictures():
    crop = dict(kind="random_resized_crop", size=16, scale=(0.1, 1.0), count=2)
    field = Image(crop, mean=(0.0,), std=(1 / 255,), mixup=0.8, mix_group=4)
    crops = IMAGES[:, None].repeat(2, 1)
    with compiling.quickly():
        inputs = jax.jit(field.encoder_inputs, static_argnums=2)(crops, jax.random.key(0), True)
    mixed_images, lam = inputs["images"], inputs["mix_ratio"]
    np.testing.assert_allclose(mixed_images[:, 0], mixed_images[:, 1])
    part = np.asarray(lam)[:, None, None, None]
    np.testing.assert_allclose(mixed_images[:, 0], part * IMAGES + (1 - part) * OTHERS, rtol=1e-5)
    _, expected = mixing.mix(named_key(jax.random.key(0), "mix"), crops, 0.8, 0.0, 4)
    np.testing.assert_allclose(lam, expected, rtol=1e-6)
    inputs = field.encoder_inputs(crops, jax.random.key(0), False)
    assert set(inputs) == {"images"}
    np.testing.assert_allclose(inputs["images"], crops, rtol=1e-6)
