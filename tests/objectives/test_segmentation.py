"""Segmentation in the system: its loss by hand, on any devices and microbatches, with pixels of no class."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.data import fields
from big_ssl.losses.segmentation import pixel_sums
from big_ssl.models.encoder import Encoder
from big_ssl.objectives import segmentation
from big_ssl.objectives.base import Context, EncoderCall
from big_ssl.objectives.encoder_maps import encoder_maps
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import train_step
from big_ssl.training.system import System, Term
from tests import compiling

BATCH, SIDE, CLASSES, IGNORE = 16, 16, 3, 255
KEY = jax.random.key(1)


class Maps(Encoder):
    """Maps of strides 4 and 8, of one convolution each."""

    outputs = ("pooled", "pyramid")
    pyramid_strides: ClassVar = (4, 8)

    @nn.compact
    def __call__(self, images, train=False):
        first = jnp.tanh(nn.Conv(4, (4, 4), (4, 4))(images))
        second = jnp.tanh(nn.Conv(5, (2, 2), (2, 2))(first))
        return dict(pooled=second.mean((1, 2)), pyramid=(first, second))


def objective(**head):
    context = Context(None, "float32", None, {}, dict(image=Maps()))
    return segmentation.build(CLASSES, head, context=context)


HEADS = dict(
    # A batch norm's statistics are those of one image, so that they are the same in any microbatch.
    linear=dict(kind="linear", bn_group=1),
    upernet=dict(kind="upernet", bn_group=1, channels=4, map_norm=True, dropout=0.0),
)


def system(kind):
    crop = dict(kind="random_crop", resize=SIDE, size=SIDE, resize_mode="stretch")
    made = fields.build(
        dict(
            image=dict(kind="image", crop=crop, mean=(0.5,), std=(0.25,)),
            mask=dict(kind="mask", image="image", key="mask", num_classes=CLASSES),
        ),
        0,
    )
    terms = dict(segmentation=Term("s", objective(**HEADS[kind]), lambda step: 0.5))
    return System(dict(image=Maps()), dict(s=made), terms)


@functools.cache
def example(kind):
    """(params, mutable, batch); the last quarter of the images has no pixel with a class."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, CLASSES, (BATCH, SIDE, SIDE)).astype(np.uint8)
    mask[rng.random(mask.shape) < np.linspace(0, 0.8, BATCH)[:, None, None]] = IGNORE
    mask[3 * BATCH // 4 :] = IGNORE
    batch = dict(image=rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.uint8), mask=mask)
    params, mutable = jax.eval_shape(lambda: system(kind).init(KEY, dict(s=batch)))
    params, mutable = (
        jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), tree)
        for tree in (params, mutable)
    )
    return params, mutable, dict(s=batch)


@functools.cache
def gradients(kind, devices, count):
    """((loss, (metrics, mutable)), gradients)."""
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    params, mutable, batch = example(kind)
    function = jax.jit(fsdp.within(mesh, train_step.value_and_grad(system(kind), count, mesh)))
    with compiling.quickly():
        batch = mesh_lib.global_batch(mesh, batch)
        return jax.device_get(function(params, mutable, batch, KEY, jnp.int32(0)))


def check_against_one_device(kind, devices, count):
    (loss, (metrics, mutable)), grads = gradients(kind, devices, count)
    (expected, (expected_metrics, expected_mutable)), expected_grads = gradients(kind, 1, 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), grads, expected_grads
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (metrics, mutable),
        (expected_metrics, expected_mutable),
    )


def test_eight_devices_in_two_microbatches_give_the_loss_and_gradient_of_one():
    """Means of the devices' own means would differ: their images have different numbers of valid pixels."""
    check_against_one_device("linear", 8, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "devices", "count"),
    [("linear", 1, 2), ("linear", 4, 1), ("linear", 4, 4), ("upernet", 1, 4), ("upernet", 8, 2)],
)
def test_other_devices_and_microbatches(kind, devices, count):
    check_against_one_device(kind, devices, count)


def resized_by_hand(x, side):
    """[h, w, C] -> [side, side, C] in float64: between the centres of the pixels around."""
    for axis in (0, 1):
        old = x.shape[axis]
        places = np.clip((np.arange(side) + 0.5) * old / side - 0.5, 0, old - 1)
        below = np.floor(places).astype(int)
        weight = np.expand_dims(places - below, (1, 2) if axis == 0 else (0, 2))
        above = np.minimum(below + 1, old - 1)
        x = np.take(x, below, axis) * (1 - weight) + np.take(x, above, axis) * weight
    return x


def test_the_loss_is_the_mean_over_all_pixels_with_a_class():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 4, CLASSES))
    mask = rng.integers(0, CLASSES, (3, 10, 10))
    mask[rng.random(mask.shape) < 0.4] = IGNORE
    mask[1] = IGNORE
    losses, right = [], []
    for i, j, k in np.argwhere(mask != IGNORE):
        pixel = resized_by_hand(logits[i], 10)[j, k]
        losses.append(np.log(np.exp(pixel).sum()) - pixel[mask[i, j, k]])
        right.append(pixel.argmax() == mask[i, j, k])
    features = dict(logits=logits.astype(np.float32))
    made = objective(kind="linear")
    loss, metrics, _ = made.loss(features, dict(mask=mask.astype(np.uint8)), {}, 0)
    assert loss.count == metrics["accuracy"].count == len(losses)
    np.testing.assert_allclose(loss.mean, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"].mean, np.mean(right))
    crops, masks = logits[:, None].astype(np.float32), mask[:, None]  # [B, n, ...] of one crop
    np.testing.assert_allclose(made.loss(dict(logits=crops), dict(mask=masks), {}, 0)[0].mean, loss.mean)


def test_pixels_without_a_class_have_no_loss_and_no_gradient():
    """Not even where all of the batch has none."""
    grad = jax.grad(lambda x: pixel_sums(x, jnp.array([0, IGNORE]), jnp.array([True, False]))[0])
    grads = grad(jnp.array([[1.0, 2.0], [3.0, 0.0]]))
    assert np.all(grads[0] != 0)
    assert not np.any(grads[1])
    made = objective(kind="linear")
    loss, metrics, _ = made.loss(
        dict(logits=np.ones((2, 2, 2, CLASSES), np.float32)), dict(mask=np.full((2, 4, 4), IGNORE)), {}, 0
    )
    assert (loss.mean, loss.count, metrics["accuracy"].mean) == (0, 0, 0)


def test_the_linear_head_normalises_each_channel_and_counts_running_statistics():
    head, rng = objective(kind="linear").head, np.random.default_rng(0)
    maps = [rng.normal(1, 2, (2, 4, 4, 3)), rng.normal(-1, 3, (2, 2, 2, 2))]
    maps = [x.astype(np.float32) for x in maps]
    inputs = dict(image=dict(pyramid=maps))
    variables = head.init(KEY, inputs)
    assert variables["params"]["classifier"]["kernel"].shape == (5, CLASSES)
    output, state = head.apply(variables, inputs, train=True, mutable=["batch_stats"])
    x = np.concatenate([maps[0], np.stack([resized_by_hand(y, 4) for y in maps[1]])], -1)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    kernel = np.asarray(variables["params"]["classifier"]["kernel"])
    np.testing.assert_allclose(
        output["logits"], (x - mean) / np.sqrt(var + 1e-5) @ kernel, rtol=1e-3, atol=1e-5
    )
    stats = state["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-4)


def test_layers_are_maps_of_the_pyramids_grid():
    made = segmentation.build(CLASSES, layers=(-2, -1), context=Context(None, "float32", None, {}))
    assert made.inputs["image"] == EncoderCall("image", "image", ("pyramid", "layers"), (-2, -1))
    layers = tuple(dict(patches=jnp.full((2, 6, 4), float(i))) for i in range(2))
    maps = encoder_maps(dict(pyramid=(jnp.zeros((2, 3, 2, 4)),), layers=layers))
    assert [x.shape for x in maps] == [(2, 3, 2, 4)] * 2
    assert [float(x.mean()) for x in maps] == [0, 1]


def test_a_neck_gets_the_encoders_strides():
    head = objective(kind="upernet", neck=dict(kind="fpn", channels=6, strides=(4, 8))).head
    assert head.encoder_strides == (4, 8)
    assert head.neck.channels == 6


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (dict(kind="mlp"), r"^segmentation.head.kind is 'mlp'; use linear or upernet$"),
        (
            dict(kind="linear", width=3),
            r"^segmentation.head.width is no option of linear; there are bn_group$",
        ),
    ],
)
def test_a_head_that_is_not_there_is_named(head, message):
    with pytest.raises(ValueError, match=message):
        objective(**head)
