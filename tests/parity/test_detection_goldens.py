"""A detector's operations against outputs of torchvision's, and Dynamic Head against one in PyTorch, that
tests/parity/make_detection_goldens.py has written down."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from big_ssl.losses import boxes as box_lib
from big_ssl.losses import detection as losses
from big_ssl.losses.nms import nms
from big_ssl.models import dynamic_head
from big_ssl.models.deformable_convolution import deformable_conv
from tests.parity.dyhead_names import dynamic_head_params

DATA = pathlib.Path(__file__).parents[1] / "data"
CLOSE = dict(rtol=1e-4, atol=1e-4)


@functools.cache
def golden(name):
    return dict(np.load(DATA / f"golden_{name}.npz"))


@pytest.mark.parametrize(
    ("case", "stride"),
    [
        ("near", 1),
        pytest.param("far", 1, marks=pytest.mark.slow),
        pytest.param("strided", 2, marks=pytest.mark.slow),
    ],
)
def test_deformable_convolution(case, stride):
    arrays = golden("detection")
    inputs, outputs = (
        {key.rsplit("/", 1)[1]: x for key, x in arrays.items() if key.startswith(f"{case}/{part}/")}
        for part in ("inputs", "outputs")
    )

    def loss(inputs):
        y = deformable_conv(**inputs, stride=stride)
        return (y**2).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    np.testing.assert_allclose(y, outputs.pop("y"), **CLOSE)
    assert sorted(grads) == sorted(outputs)
    for name, expected in outputs.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(grads[name] / scale, expected / scale, err_msg=name, atol=1e-5)


def test_losses():
    arrays = golden("detection")

    def loss(logits, boxes):
        focal = losses.sigmoid_focal_loss(logits, arrays["positive"])
        overlap = losses.generalized_iou_loss(boxes, arrays["others"])
        iou = box_lib.box_iou(boxes[:, None], arrays["others"])
        return focal.sum() + overlap.sum(), dict(focal=focal, giou_loss=overlap, iou=iou)

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, values), grads = run(arrays["logits"], arrays["boxes"])
    for name, found in (values | dict(focal_grad=grads[0], giou_grad=grads[1])).items():
        np.testing.assert_allclose(found, arrays[name], err_msg=name, rtol=1e-5, atol=1e-6)


def test_box_coder():
    arrays = golden("detection")
    run = jax.jit(lambda *x: (box_lib.encode_boxes(*x), box_lib.decode_boxes(2 * arrays["deltas"], x[1])))
    for found, name in zip(run(arrays["boxes"], arrays["others"]), ("deltas", "decoded"), strict=True):
        np.testing.assert_allclose(found, arrays[name], rtol=1e-4, atol=1e-3, err_msg=name)


def test_non_maximum_suppression():
    """With ties; scores of two classes' boxes that tie may come in another order there."""
    arrays = golden("detection")
    boxes, scores, labels, kept = (arrays[name] for name in ("candidates", "scores", "labels", "kept"))
    found = jax.jit(lambda *x: nms(*x, 0.5, len(kept) + 3))(boxes, scores, labels)
    order = np.lexsort((kept, -scores[kept]))
    for mine, theirs in zip(found, (boxes, scores, labels), strict=True):
        np.testing.assert_array_equal(mine[: len(kept)], theirs[kept][order])
    assert not np.asarray(found[1])[len(kept) :].any()
    assert len(np.unique(scores[kept])) < len(kept) < len(boxes)


@pytest.mark.parametrize("kind", ["resized", pytest.param("misindexed", marks=pytest.mark.slow)])
def test_dynamic_head(kind):
    arrays = golden("dynamic_head")
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    params = dynamic_head_params({name: value.astype(np.float32) for name, value in weights.items()})
    module = dynamic_head.DynamicHead(16, 2, groups=8, misindexed_offsets=kind == "misindexed")
    maps = tuple(arrays[f"map{i}"] for i in range(3))
    found = jax.jit(module.apply)(dict(params=params), maps)
    for i, value in enumerate(found):
        np.testing.assert_allclose(value, arrays[f"{kind}{i}"], **CLOSE)
    assert len(flatten_dict(params)) == len(weights)
    assert np.abs(arrays["resized0"] - arrays["misindexed0"]).max() > 0.1
