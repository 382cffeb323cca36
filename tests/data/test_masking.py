"""Block-wise masks: their number, their shape, and what comes with them."""

import functools

import jax
import numpy as np
import pytest

from big_ssl.data.masking import BlockMask

MASK = BlockMask(grid=14, mask_group=8)


@functools.cache
def drawn(seed, examples=16, crops=2):
    found = jax.jit(MASK, static_argnums=(1, 2))(jax.random.key(seed), examples, crops)
    return jax.device_get(found)


def test_half_of_the_crops_are_masked_with_ratios_spread_over_the_range():
    """In every group, and every step: what makes the number of masked patches static."""
    for seed in range(5):
        counts = drawn(seed)["mask"].sum(-1).reshape(2, 16)
        for group in np.sort(counts, axis=1):
            assert (group[:8] == 0).all()
            ratios = group[8:] / 196
            np.testing.assert_allclose(ratios, 0.1 + 0.4 * (np.arange(8) + 0.5) / 8, atol=1 / 196)
    assert not np.array_equal(drawn(0)["mask"], drawn(1)["mask"])


def test_each_crop_is_as_likely_to_be_masked():
    masked = np.mean([(drawn(seed)["mask"].sum(-1) > 0) for seed in range(60)], axis=0)
    # Four standard deviations of a mean of 60.
    np.testing.assert_allclose(masked, 0.5, atol=4 * 0.5 / 60**0.5)


def test_indices_and_weights_are_those_of_the_masked_patches():
    found = drawn(0)
    flat = found["mask"].reshape(2, -1)
    for group, indices, weights in zip(flat, found["indices"], found["weights"], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(group), indices)
        counts = group.reshape(16, 196).sum(1)
        np.testing.assert_allclose(weights, 1 / counts[indices // 196])


def test_masks_are_blocks_and_not_noise():
    """A masked patch's right neighbour is masked far more often than by chance."""
    masks = drawn(0)["mask"].reshape(-1, 14, 14)
    masks = masks[masks.any((1, 2))]
    together = (masks[:, :, :-1] & masks[:, :, 1:]).sum() / masks[:, :, :-1].sum()
    assert together > 0.75
    assert masks.mean() == pytest.approx(0.3, abs=0.01)


def reference(rng, count, side=14, least=4):
    """The loop of arXiv 2106.08254, algorithm 1, with DINOv2's least area, for one picture."""
    mask = np.zeros((side, side), bool)
    while mask.sum() < count:
        for _ in range(10):
            area = (
                rng.uniform(least, count - mask.sum()) if count - mask.sum() > least else count - mask.sum()
            )
            aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if h < side and w < side:
                top, left = rng.integers(0, side - h + 1), rng.integers(0, side - w + 1)
                new = h * w - mask[top : top + h, left : left + w].sum()
                if 0 < new <= count - mask.sum():
                    mask[top : top + h, left : left + w] = True
                    break
        else:
            break
    return mask


def test_places_are_masked_as_often_as_by_the_published_loop():
    """The middle more often than the edges, and the corners least."""
    rng, many = np.random.default_rng(0), 800
    expected = np.mean([reference(rng, 60) for _ in range(many)], axis=0)
    keys = jax.random.split(jax.random.key(0), many)
    found = np.asarray(jax.vmap(lambda key: MASK._one(key, 60))(keys)).reshape(many, 14, 14).mean(0)
    assert expected[0, 0] < 0.15 < expected[6, 6]
    # Five standard deviations of both means, of 196 places.
    noise = 5 * np.sqrt(2 * expected * (1 - expected) / many)
    assert (np.abs(found - expected) < noise).all()


@pytest.mark.parametrize("count", [1, 2, 20, 98, 150])
def test_any_number_is_met_exactly(count):
    masks = jax.vmap(lambda key: MASK._one(key, count))(jax.random.split(jax.random.key(0), 32))
    assert set(np.asarray(masks).sum(1)) == {count}


def test_a_batch_smaller_than_a_group_is_one():
    assert drawn(0, examples=4)["indices"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(grid=1), "mask: grid is 1"),
        (dict(grid=14, mask_prob=0.0), "mask_prob 0.0"),
        (dict(grid=14, ratio=(0.5, 0.1)), r"ratio \(0.5, 0.1\)"),
    ],
)
def test_what_is_no_mask_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        BlockMask(**options)


def test_a_group_that_does_not_divide_the_batch_is_named():
    with pytest.raises(ValueError, match="mask: mask_group 8 does not divide a batch of 12"):
        MASK(jax.random.key(0), 12, 2)
