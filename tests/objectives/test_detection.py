"""Detection in the system: its loss by hand, on any devices and microbatches; boxes that must not count."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.data import fields
from big_ssl.losses import atss
from big_ssl.losses import boxes as box_lib
from big_ssl.models.dynamic_head import Predictions
from big_ssl.models.encoder import Encoder
from big_ssl.objectives import detection
from big_ssl.objectives.base import Context, mean_loss
from big_ssl.parallel import fsdp
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import train_step
from big_ssl.training.system import System, Term
from tests import compiling

BATCH, SIDE, ROWS, CLASSES = 16, 64, 4, 3
KEY = jax.random.key(1)


class Maps(Encoder):
    """Maps of strides 8, 16 and 32, of one convolution each."""

    outputs = ("pooled", "pyramid")
    pyramid_strides: ClassVar = (8, 16, 32)

    @nn.compact
    def __call__(self, images, train=False):
        maps = []
        for i, stride in enumerate(self.pyramid_strides):
            size = (stride, stride) if i == 0 else (2, 2)
            images = jnp.tanh(nn.Conv(4 + i, size, size)(images))
            maps.append(images)
        return dict(pooled=images.mean((1, 2)), pyramid=tuple(maps))


def objective(**options):
    context = Context(None, "float32", None, {}, dict(image=Maps()))
    options = dict(classes=CLASSES, blocks=0, neck=dict(kind="fpn", channels=8)) | options
    return detection.build(**options, context=context)


def system(**options):
    crop = dict(kind="random_crop", resize=SIDE, size=SIDE, resize_mode="stretch")
    made = fields.build(
        dict(
            image=dict(kind="image", crop=crop, mean=(0.5,), std=(0.25,)),
            boxes=dict(kind="boxes", image="image", key="boxes", max_boxes=ROWS),
        ),
        0,
    )
    terms = dict(detection=Term("s", objective(**options), lambda step: 0.5))
    return System(dict(image=Maps()), dict(s=made), terms)


@functools.cache
def example():
    """(params, mutable, batch): images with none to ROWS boxes; the last quarter of the batch has none."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (BATCH, ROWS, 2, 2))
    boxes = np.concatenate([corners.min(2), corners.min(2) + 0.1 + 0.4 * np.ptp(corners, axis=2)], -1)
    counts = np.where(np.arange(BATCH) < 3 * BATCH // 4, np.arange(BATCH) % (ROWS + 1), 0)
    batch = dict(
        image=rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.uint8),
        boxes=dict(
            boxes=np.clip(boxes, 0, 1).astype(np.float32),
            labels=rng.integers(0, CLASSES, (BATCH, ROWS)).astype(np.int32),
            valid=np.arange(ROWS) < counts[:, None],
        ),
    )
    made = system()
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), dict(s=batch)))
    params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes[0])
    return params, shapes[1], dict(s=batch)


@functools.cache
def gradients(devices, count):
    """((loss, (metrics, mutable)), gradients)."""
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    params, mutable, batch = example()
    function = jax.jit(fsdp.within(mesh, train_step.value_and_grad(system(), count, mesh)))
    with compiling.quickly():
        return jax.device_get(
            function(params, mutable, mesh_lib.global_batch(mesh, batch), KEY, jnp.int32(0))
        )


def close(actual, expected, rtol):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max() + 1e-6 * largest)

    jax.tree.map(check, actual, expected)


def check_against_one_device(devices, count):
    (loss, (metrics, _)), grads = gradients(devices, count)
    (expected, (expected_metrics, _)), expected_grads = gradients(1, 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    close(metrics, expected_metrics, 1e-5)
    close(grads, expected_grads, 1e-4)


def test_eight_devices_in_two_microbatches_give_the_loss_and_gradient_of_one():
    """Means of the devices' own means would differ: a quarter of the images, on two devices, has no boxes."""
    check_against_one_device(8, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "count"), [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)])
def test_other_devices_and_microbatches(devices, count):
    check_against_one_device(devices, count)


SHAPES = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
ANCHORS = box_lib.anchor_boxes(SHAPES, (8, 16, 32, 64, 128))


@functools.cache
def predictions(classes=CLASSES):
    rng = np.random.default_rng(1)
    axes = dict(logits=(classes,), deltas=(4,), centerness=())
    return {
        name: tuple(rng.normal(size=(BATCH, *shape, *last)).astype(np.float32) for shape in SHAPES)
        for name, last in axes.items()
    }


def by_hand(found, boxes):
    """The three terms and the positive anchors, in float64, of one image after the other."""
    assign = jax.jit(functools.partial(atss.targets, ANCHORS))
    focal, overlap, weights, central, positives = (0.0,) * 5
    for i, valid in enumerate(boxes["valid"]):
        logits, deltas, centerness = (
            np.concatenate([x[i].reshape(-1, *x.shape[3:]) for x in found[name]]).astype(float)
            for name in ("logits", "deltas", "centerness")
        )
        pixels = np.where(valid[:, None], SIDE * boxes["boxes"][i], 0)
        targets = jax.tree.map(np.asarray, assign(pixels, boxes["labels"][i], valid))
        chosen = targets.labels >= 0
        p = 1 / (1 + np.exp(-logits))
        p, alpha = (
            np.where(targets.labels[:, None] == np.arange(p.shape[1]), *pair)
            for pair in ((p, 1 - p), (0.25, 0.75))
        )
        focal -= (alpha * (1 - p) ** 2 * np.log(p)).sum()
        weight = targets.centerness[chosen].astype(float)
        overlap += (weight * (1 - giou(decoded(deltas)[chosen], targets.boxes[chosen]))).sum()
        q = 1 / (1 + np.exp(-centerness[chosen]))
        central -= (weight * np.log(q) + (1 - weight) * np.log(1 - q)).sum()
        weights, positives = weights + weight.sum(), positives + chosen.sum()
    return focal / positives, overlap / weights, central / positives, positives


def decoded(deltas):
    """float64[A, 4] of one image."""
    anchors = np.concatenate(ANCHORS).astype(float)
    sides = anchors[:, 2:] - anchors[:, :2]
    centers = anchors[:, :2] + sides / 2 + deltas[:, :2] / 10 * sides
    sides = sides * np.exp(deltas[:, 2:] / 5)
    return np.concatenate([centers - sides / 2, centers + sides / 2], 1)


def giou(a, b):
    """float64[N] of boxes [N, 4]."""
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    around = (np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2])).prod(1)
    both, areas = sides.prod(1), [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    union = areas[0] + areas[1] - both
    return both / union - (around - union) / around


@functools.cache
def loss_and_gradient():
    """A compiled function of predictions, boxes and images -> ((loss, metrics), gradient)."""

    def loss(found, boxes, images):
        batch_fields = dict(boxes=boxes, pixels=images)
        sums, metrics, _ = objective().loss(dict(detections=found), batch_fields, {}, 0)
        return mean_loss(sums), {name: x.mean for name, x in metrics.items()}

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loss_of(boxes, images=None, found=None):
    images = example()[2]["s"]["image"] if images is None else images
    with compiling.quickly():
        return jax.device_get(loss_and_gradient()(found or predictions(), boxes, images))


def test_the_loss_by_hand():
    boxes = example()[2]["s"]["boxes"]
    focal, overlap, central, positives = by_hand(predictions(), boxes)
    (loss, metrics), _ = loss_of(boxes)
    assert positives > 50
    np.testing.assert_allclose(loss, focal + 2 * overlap + central, rtol=1e-5)
    names = ("class_loss", "box_loss", "centerness_loss", "positives")
    expected = (focal, overlap, central, positives / BATCH)
    np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=1e-5)


def test_rows_that_are_not_valid_do_not_count():
    boxes = example()[2]["s"]["boxes"]
    unused = ~boxes["valid"]
    garbage = np.float32([np.nan, -7, 1e30, 0.2])
    spoiled = boxes | dict(
        boxes=np.where(unused[..., None], garbage, boxes["boxes"]),
        labels=np.where(unused, np.int32(99), boxes["labels"]),
    )
    jax.tree.map(np.testing.assert_array_equal, loss_of(spoiled), loss_of(boxes))


def test_a_batch_without_boxes_has_a_loss_of_classes_alone():
    boxes = example()[2]["s"]["boxes"]
    (loss, metrics), grads = loss_of(boxes | dict(valid=np.zeros_like(boxes["valid"])))
    p = [1 / (1 + np.exp(-x.astype(float))) for x in predictions()["logits"]]
    np.testing.assert_allclose(loss, -0.75 * sum((x**2 * np.log(1 - x)).sum() for x in p), rtol=1e-5)
    assert (metrics["box_loss"], metrics["centerness_loss"], metrics["positives"]) == (0, 0, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not any(np.any(leaf) for leaf in grads["deltas"] + grads["centerness"])


def test_a_class_agnostic_head_has_one_class():
    made, boxes = objective(class_agnostic=True), example()[2]["s"]["boxes"]
    assert made.head.classes == 1
    batch_fields = dict(boxes=boxes, pixels=example()[2]["s"]["image"])
    loss = jax.jit(lambda found: mean_loss(made.loss(dict(detections=found), batch_fields, {}, 0)[0]))
    focal, overlap, central, _ = by_hand(predictions(1), boxes | dict(labels=0 * boxes["labels"]))
    with compiling.quickly():
        np.testing.assert_allclose(loss(predictions(1)), focal + 2 * overlap + central, rtol=1e-5)


def test_crops_of_an_image_are_examples():
    """Two crops of each image, [B / 2, 2, ...], have the targets of B images."""
    batch = example()[2]["s"]
    pairs = jax.tree.map(lambda x: x.reshape(BATCH // 2, 2, *x.shape[1:]), batch)
    targets = [
        jax.eval_shape(lambda x: objective()._targets(ANCHORS, x["boxes"], x["image"].shape[-3:-1]), part)
        for part in (batch, pairs)
    ]
    assert targets[0] == targets[1]
    assert targets[0].labels.shape == (BATCH, 86)
    maps = tuple(jax.ShapeDtypeStruct((2, 3, 8 // 2**i, 8 // 2**i, 4 + i), np.float32) for i in range(3))
    head = objective().head
    features, _ = jax.eval_shape(head.init_with_output, KEY, dict(image=dict(pyramid=maps)))
    assert features["detections"]["deltas"][0].shape == (6, 8, 8, 4)


def test_a_vit_with_an_odd_number_of_patches_has_a_dynamic_head():
    """57 x 43 patches of 14 pixels: sides are halved and rounded up, as Dynamic Head requires."""
    neck = dict(kind="simple_feature_pyramid", channels=8, strides=(8, 16, 32, 64, 128))

    class Patches(Maps):
        pyramid_strides: ClassVar = (14,)

    context = Context(None, "float32", None, {}, dict(image=Patches()))
    head = detection.build(CLASSES, neck, blocks=1, groups=2, context=context).head
    maps = (jax.ShapeDtypeStruct((1, 57, 43, 4), np.float32),)
    features, _ = jax.eval_shape(head.init_with_output, KEY, dict(image=dict(pyramid=maps)))
    shapes = [x.shape[1:3] for x in features["detections"]["centerness"]]
    assert shapes == [(100, 76), (50, 38), (25, 19), (13, 10), (7, 5)]


def test_an_untrained_head_takes_every_anchor_for_background():
    maps = tuple(np.ones((1, 2, 2, 4), np.float32) for _ in range(5))
    with compiling.quickly():
        found, _ = jax.jit(Predictions(CLASSES).init_with_output)(KEY, maps)
    for logits in found["logits"]:
        np.testing.assert_allclose(jax.nn.sigmoid(logits), 0.01, atol=0.002)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(nms_threshold=1.0), r"^detection: nms_threshold is 1.0, candidates 1000, blocks 0; "),
        (dict(neck=dict(kind="bifpn")), r"^neck.kind is 'bifpn'; there are fpn"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        objective(**options)


def test_images_of_another_size_than_the_encoders_are_named():
    batch = example()[2]["s"]
    large = np.zeros((BATCH, 2 * SIDE, 2 * SIDE, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^detection: the map of stride 8 has \(8, 8\) positions, "):
        objective().loss(dict(detections=predictions()), dict(boxes=batch["boxes"], pixels=large), {}, 0)


def test_an_encoder_without_maps_is_named():
    class Flat(Maps):
        outputs = ("pooled",)

    context = Context(None, "float32", None, {}, dict(image=Flat()))
    with pytest.raises(ValueError, match=r"^detection: encoders.image must have a pyramid .* it is a Flat$"):
        detection.build(CLASSES, context=context)
