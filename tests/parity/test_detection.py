"""A detector's operations against torchvision's, and Dynamic Head against one in PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")

from big_ssl.losses import boxes as box_lib  # noqa: E402
from big_ssl.losses import detection as losses  # noqa: E402
from big_ssl.losses.nms import nms  # noqa: E402
from big_ssl.models import deformable_convolution as dcn  # noqa: E402
from big_ssl.models.dynamic_head import DynamicHead  # noqa: E402
from tests.parity import detection_peers as peers  # noqa: E402  (needs PyTorch)
from tests.parity.dyhead_names import dynamic_head_params  # noqa: E402

pytestmark = pytest.mark.parity
# Of odd sizes; near and far offsets.
CONVOLUTIONS = [((19, 27), 1, 1.5), ((19, 27), 2, 1.5), ((9, 7), 1, 30.0), ((17, 33), 2, 4.0)]


@pytest.fixture(scope="module")
def torchvision():
    return pytest.importorskip("torchvision", reason="torchvision is not installed")


def compiled(torchvision):
    if not torchvision.extension._has_ops():
        pytest.skip("this torchvision has no compiled operations for this PyTorch")
    return torchvision.ops


@pytest.mark.parametrize(("size", "stride", "scale"), CONVOLUTIONS)
@pytest.mark.parametrize("peer", ["torchvision", "loops"])
@pytest.mark.parametrize("implementation", sorted(dcn.IMPLEMENTATIONS))
def test_deformable_convolution(implementation, peer, size, stride, scale, request):
    operation = peers.deformable_conv
    if peer == "torchvision":
        compiled(request.getfixturevalue("torchvision"))
        operation = peers.torchvision_convolution
    inputs = peers.random_convolution(size, stride, scale)
    expected = peers.run_convolution(operation, inputs, stride)

    def loss(inputs):
        y = dcn.deformable_conv(**inputs, stride=stride, implementation=implementation)
        return (y**2).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    for name, found in (grads | dict(y=y)).items():
        # At whole offsets the loops' slope is that of |x|, between both sides.
        rows = slice(1, None) if name == "offsets" and peer == "loops" else slice(None)
        top = np.abs(expected[name]).max()
        np.testing.assert_allclose(
            found[:, rows] / top if rows.start else found / top,
            expected[name][:, rows] / top if rows.start else expected[name] / top,
            err_msg=name,
            atol=1e-5,
        )


def test_losses(torchvision):
    rng = np.random.default_rng(0)
    logits = (4 * rng.normal(size=(500, 20))).astype(np.float32)
    positive, boxes, others = (
        rng.uniform(size=logits.shape) < 0.1,
        *map(peers.random_boxes, (300, 300), (0, 1)),
    )
    expected = peers.run_losses(logits, positive, boxes, others)

    def loss(logits, boxes):
        focal = losses.sigmoid_focal_loss(logits, positive)
        overlap = losses.generalized_iou_loss(boxes, others)
        iou = box_lib.box_iou(boxes[:, None], others)
        return focal.sum() + overlap.sum(), dict(focal=focal, giou_loss=overlap, iou=iou)

    (_, values), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(logits, boxes)
    for name, found in (values | dict(focal_grad=grads[0], giou_grad=grads[1])).items():
        np.testing.assert_allclose(found, expected[name], err_msg=name, rtol=1e-4, atol=2e-6)


def test_box_coder(torchvision):
    boxes, anchors = peers.random_boxes(300), peers.random_boxes(300, 1)
    deltas, decoded = peers.run_coder(boxes, anchors)
    np.testing.assert_allclose(box_lib.encode_boxes(boxes, anchors), deltas, rtol=1e-4, atol=1e-4)
    found = box_lib.decode_boxes(2 * deltas, anchors)
    np.testing.assert_allclose(found, decoded, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
def test_non_maximum_suppression(torchvision, threshold):
    """Against batched_nms, with ties of scores and of overlaps with the threshold; classes' orders of equal
    scores are not defined there."""
    ops, run = compiled(torchvision), jax.jit(lambda *x: nms(*x, threshold, 200))
    for seed in range(10):
        boxes, scores, labels = peers.random_candidates(200, seed)
        kept = ops.batched_nms(*map(torch.tensor, (boxes, scores, labels)), threshold).numpy()
        kept = kept[np.lexsort((kept, -scores[kept]))]
        for found, theirs in zip(run(boxes, scores, labels), (boxes, scores, labels), strict=True):
            np.testing.assert_array_equal(found[: len(kept)], theirs[kept])


@pytest.mark.parametrize("misindexed", [False, True])
def test_dynamic_head(misindexed):
    """With the published groups and number of blocks."""
    sizes = ((33, 45), (17, 23), (9, 12), (5, 6), (3, 3))
    peer, maps = peers.dyhead(channels=32, blocks=6, groups=16), peers.random_maps(32, sizes)
    expected = peers.run_dyhead(peer, maps, misindexed)
    params = dynamic_head_params({name: value.numpy() for name, value in peer.state_dict().items()})
    module = DynamicHead(32, misindexed_offsets=misindexed)
    found = jax.jit(module.apply)(dict(params=params), tuple(maps))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
        assert theirs.std() > 0.3
