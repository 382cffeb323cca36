"""A real Predictor whose head finds red and green cells of 8 pixels, exactly, and pictures of such cells."""

import io
import math
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from big_ssl.data.preprocessing import Pixels
from big_ssl.evals.predictor import Predictor
from big_ssl.losses.pairwise import Pairwise
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.contrastive import Contrastive, ContrastiveHead
from big_ssl.objectives.detection import Detection
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training.system import System, Term
from tests.evals.conftest import COLOURS, ColourTexts, tokenize

CELL = 8
NAMES = ("red", "green")


class Cells(Encoder):
    """pooled: the mean colour less 60; pyramid: the mean colour of each cell."""

    outputs = ("pooled", "pyramid")
    pyramid_strides: ClassVar = (CELL,)

    @nn.compact
    def __call__(self, images, train=False):
        batch, height, width, _ = images.shape
        cells = images.reshape(batch, height // CELL, CELL, width // CELL, CELL, 3).mean((2, 4))
        return dict(pooled=images.mean((1, 2)) - 60, pyramid=(cells,))


class Neck(nn.Module):
    strides: Sequence[int] = (CELL,)


class ColourHead(nn.Module):
    """A logit of 10 in a cell that is wholly red or green; a box is its cell."""

    neck: nn.Module
    encoder_strides: Sequence[int] = (CELL,)
    classes: int = 2

    @nn.compact
    def __call__(self, inputs, train=False):
        (cells,) = inputs["image"]["pyramid"]
        logits = (cells[..., :2] - cells[..., 1::-1] - 140) / 10
        deltas = jnp.array([0, 0, 5 * math.log(1 / 8), 5 * math.log(1 / 8)])  # of anchors 8 cells wide
        deltas = jnp.broadcast_to(deltas, (*cells.shape[:3], 4))
        return dict(detections=dict(logits=(logits,), deltas=(deltas,), centerness=(logits.max(-1),)))


def predictor(devices=1, class_agnostic=False):
    """Images have a shorter side of 32 pixels, or a longer one of 64."""
    terms = dict(
        boxes=Detection(ColourHead(Neck()), max_side=64, class_agnostic=class_agnostic),
        pairs=Contrastive(ContrastiveHead(3), Pairwise("dense", None)),
    )
    system = System(
        encoders=dict(image=Cells(), text=ColourTexts()),
        fields={},
        eval_pixels=Pixels((0.0,), (1 / 255,)),
        terms={name: Term(name, objective, lambda step: 1.0) for name, objective in terms.items()},
    )
    pairs = dict(temperature=np.float32(0.1), text_projection=dict(kernel=np.eye(3), bias=np.zeros(3)))
    params = dict(encoders=dict(image={}, text={}), heads=dict(boxes={}, pairs=pairs))
    variables = jax.tree.map(jnp.asarray, dict(params=params, encoders=dict(image={}, text={})))
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:devices])
    config = dict(image_size=32, resize="crop 32 bilinear")
    return Predictor(system, variables, mesh, config, lambda: tokenize, 32)


def picture(height, width, cells):
    """uint8[height, width, 3], grey, with coloured boxes. cells: {(left, top, right, bottom): colour}."""
    pixels = np.full((height, width, 3), 120, np.uint8)
    for (left, top, right, bottom), colour in cells.items():
        pixels[top:bottom, left:right] = COLOURS[colour]
    return pixels


class Pictures(Sequence):
    """A source of such pictures with boxes in the order yxyx, in fractions.

    pictures: tuples of (height, width, cells, the image's number).
    """

    def __init__(self, pictures):
        self._pictures = pictures

    def __len__(self):
        return len(self._pictures)

    def __getitem__(self, index):
        height, width, cells, number = self._pictures[index]
        buffer = io.BytesIO()
        Image.fromarray(picture(height, width, cells)).save(buffer, format="PNG")
        boxes = np.array([*cells], float).reshape(-1, 4) / [width, height, width, height]
        return {
            "image": buffer.getvalue(),
            "number": number,
            "objects/bbox": boxes[:, [1, 0, 3, 2]],
            "objects/label": [*cells.values()],
            "objects/crowd": [colour == "green" for colour in cells.values()],
        }

    def label_names(self, key):
        return [*NAMES]
