"""Boxes and masks on the device: mirrored with their images, in a whole step and in microbatches."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_ssl.data import fields
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.base import BatchField, EncoderCall, StatelessObjective, Sum
from big_ssl.parallel.mesh import make_mesh
from big_ssl.training import train_step
from big_ssl.training.system import System, Term

SIDE, ROWS = 8, 16
CROP = dict(kind="random_crop", resize=SIDE, size=SIDE, resize_mode="stretch")


class Red(Encoder):
    """Where the columns of an image are red: float32[B, W]."""

    outputs = ("pooled",)

    @nn.compact
    def __call__(self, images, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        return dict(pooled=scale * images[..., 0].max(1))


class Same(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        return dict(columns=inputs["image"]["pooled"])


@dataclasses.dataclass(frozen=True)
class Columns(StatelessObjective):
    """How far an image's columns are from those of its mask and of its box: 0 if all are mirrored alike."""

    scope: str
    head: nn.Module = dataclasses.field(default_factory=Same)

    @property
    def inputs(self):
        return dict(image=EncoderCall("image", "image"), mask=BatchField("mask"), boxes=BatchField("boxes"))

    def loss(self, features, batch_fields, state, step):
        boxes = batch_fields["boxes"]["boxes"][:, 0]
        centers = (jnp.arange(SIDE) + 0.5) / SIDE
        inside = (centers > boxes[:, :1]) & (centers < boxes[:, 2:3])
        by_mask = jnp.abs(features["columns"] - batch_fields["mask"].max(1)).sum(1)
        by_box = jnp.abs(features["columns"] - inside).sum(1)
        count = len(features["columns"])
        return Sum((by_mask + by_box).sum(), count), dict(by_box=Sum(by_box.sum(), count)), state


def _system(scope, flip=True):
    made = fields.build(
        dict(
            image=dict(kind="image", crop=CROP, mean=(0.0,), std=(1.0,), flip=flip),
            mask=dict(kind="mask", image="image", key="mask", num_classes=2),
            boxes=dict(kind="boxes", image="image", key="boxes", max_boxes=2),
        ),
        0,
    )
    return System(dict(image=Red()), dict(s=made), dict(columns=Term("s", Columns(scope), lambda step: 1.0)))


def _batch():
    """Images with one red box each, which the mask and the box mark too."""
    rng = np.random.default_rng(0)
    mask, boxes = np.zeros((ROWS, SIDE, SIDE), np.uint8), np.zeros((ROWS, 2, 4), np.float32)
    for i in range(ROWS):
        left, top = rng.integers(0, SIDE // 2, 2)
        mask[i, top : top + 2, left : left + 3] = 1
        boxes[i, 0] = np.array([left, top, left + 3, top + 2]) / SIDE
    images = np.stack([255 * mask, 0 * mask, 0 * mask], -1)
    valid = np.arange(2) < np.ones((ROWS, 1), int)
    return dict(s=dict(image=images, mask=mask, boxes=dict(boxes=boxes, labels=0 * valid, valid=valid)))


@pytest.mark.parametrize("scope", ["batch", "example"])
@pytest.mark.parametrize("microbatches", [1, 4])
def test_fields_of_an_image_are_mirrored_with_it(scope, microbatches):
    system, batch, key = _system(scope), _batch(), jax.random.key(2)
    params, mutable = system.init(key, batch)
    mesh = make_mesh(dict(data=2, fsdp=1, tensor=1), jax.devices()[:2])
    grad_fn = jax.jit(train_step.value_and_grad(system, microbatches, mesh))
    (loss, (metrics, _)), _ = grad_fn(params, mutable, batch, key, jnp.int32(0))
    np.testing.assert_allclose([loss, metrics["columns/by_box"]], 0, atol=1e-5)
    # The images are in fact mirrored: as they came, masks and boxes do not fit them.
    features, _ = system.features(params, mutable, batch, key)
    losses, _, _ = system.losses(features, batch, mutable["objectives"], 0)
    assert losses["columns"].mean > 1


def test_without_flips_a_batch_stays_as_it_is():
    batch = _batch()
    jax.tree.map(np.testing.assert_array_equal, _system("batch", flip=False).flipped(batch, None), batch)
