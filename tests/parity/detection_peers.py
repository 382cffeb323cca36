"""Deformable convolution and Dynamic Head in PyTorch, and random inputs of a detector's operations.

Written from the papers (arXiv 1811.11168, 2106.08322, 2003.10027) and the published parameters' names: the
authors' code needs detectron2 and compiled operations. torchvision has the other operations, and compares
with the convolution here.
"""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIZES = ((7, 9), (4, 5), (2, 3))


def deformable_conv(x, offset, mask, weight, bias, stride):
    """DCNv2 of x: [B, C, H, W], by loops over taps and corners; offset, mask: [B, 18 and 9, H', W']."""
    height, width = x.shape[2:]
    rows, columns = (torch.arange(n, dtype=x.dtype) * stride for n in offset.shape[2:])
    result = bias[None, :, None, None]
    for tap, (i, j) in enumerate(itertools.product(range(3), range(3))):
        y = rows[:, None] + i - 1 + offset[:, 2 * tap]
        x_ = columns + j - 1 + offset[:, 2 * tap + 1]
        sample = 0
        for down, right in itertools.product((0, 1), (0, 1)):
            qy, qx = y.floor() + down, x_.floor() + right
            inside = (qy >= 0) & (qy < height) & (qx >= 0) & (qx < width)
            index = (qy.clamp(0, height - 1) * width + qx.clamp(0, width - 1)).long().flatten(1)
            corner = x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1))
            part = (1 - (y - qy).abs()) * (1 - (x_ - qx).abs()) * inside
            sample = sample + corner.reshape(*x.shape[:2], *y.shape[1:]) * part[:, None]
        result = result + torch.einsum("bchw,dc->bdhw", sample * mask[:, tap, None], weight[:, :, i, j])
    return result


class _Conv3x3Norm(nn.Module):
    def __init__(self, channels, groups, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.bn = nn.GroupNorm(groups, channels)
        self.stride = stride

    def forward(self, x, offset, mask):
        return self.bn(deformable_conv(x, offset, mask, self.conv.weight, self.conv.bias, self.stride))


class _DyReLU(nn.Module):
    def __init__(self, channels):
        super().__init__()
        wide = nn.Linear(channels // 4, 4 * channels)
        self.fc = nn.Sequential(nn.Linear(channels, channels // 4), nn.ReLU(), wide)

    def forward(self, x):
        theta = F.relu6(self.fc(x.mean((2, 3))) + 3) / 6
        a1, b1, a2, b2 = theta[..., None, None].chunk(4, 1)
        return torch.maximum(x * ((a1 - 0.5) * 2 + 1) + b1 - 0.5, x * (a2 - 0.5) * 2 + b2 - 0.5)


class _DyConv(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.DyConv = nn.ModuleList([_Conv3x3Norm(channels, groups, stride) for stride in (1, 1, 2)])
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1), nn.ReLU())
        self.relu = _DyReLU(channels)
        self.offset = nn.Conv2d(channels, 27, 3, padding=1)

    def forward(self, maps, misindexed):
        return [self._level(maps, level, misindexed) for level in range(len(maps))]

    def _level(self, maps, level, misindexed):
        sampling = self.offset(maps[level])
        sampling = sampling[:, :18], sampling[:, 18:].sigmoid()
        parts = [self.DyConv[1](maps[level], *sampling)]
        if level > 0:
            parts.append(self.DyConv[2](maps[level - 1], *sampling))
        if level < len(maps) - 1:
            size = maps[level + 1].shape[2:]
            if misindexed:
                arrays = [flat_reading(array, size) for array in sampling]
            else:
                arrays = [resize(array, size) for array in sampling]
            parts.append(resize(self.DyConv[0](maps[level + 1], *arrays), maps[level].shape[2:]))
        weights = [F.relu6(self.AttnConv(part) + 3) / 6 for part in parts]
        return self.relu(torch.stack([p * w for p, w in zip(parts, weights, strict=True)]).mean(0))


class DyHead(nn.Module):
    """Its blocks have the published names; (maps, misindexed) -> maps, lists of [B, C, h, w]."""

    def __init__(self, channels=16, blocks=2, groups=8):
        super().__init__()
        self.dyhead_tower = nn.ModuleList([_DyConv(channels, groups) for _ in range(blocks)])

    def forward(self, maps, misindexed=False):
        for block in self.dyhead_tower:
            maps = block(maps, misindexed)
        return maps


def resize(x, size):
    """[B, C, h, w] -> [B, C, *size], the outermost pixels stay the outermost."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def flat_reading(x, size):
    """What the compiled operation reads of offsets or masks of another size than its output."""
    count = x.shape[1] * size[0] * size[1]
    return torch.stack([image.flatten()[:count].reshape(x.shape[1], *size) for image in x])


def dyhead(seed=0, **options):
    """A random DyHead whose offsets reach some pixels; its numbers are exact in half precision."""
    peer, rng = DyHead(**options), np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in peer.named_parameters():
            fan_in = np.prod(value.shape[1:]) if value.ndim > 1 else 4
            drawn = rng.normal(size=value.shape) * (2 / fan_in) ** 0.5
            drawn = drawn + 1 if name.endswith("bn.weight") else drawn
            value.copy_(torch.from_numpy(drawn.astype(np.float16).astype(np.float32)))
    return peer


def random_maps(channels=16, sizes=SIZES, seed=0):
    """Channels last."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, *size, channels)).astype(np.float32) for size in sizes]


def run_dyhead(peer, maps, misindexed):
    """Its maps, channels last."""
    with torch.no_grad():
        return [_last(y).numpy() for y in peer([_first(x) for x in maps], misindexed)]


def random_convolution(size, stride, scale, seed=0):
    """Inputs of a deformable convolution, channels last; the first row's offsets are whole numbers."""
    rng = np.random.default_rng(seed)
    positions = (2, -(-size[0] // stride), -(-size[1] // stride))
    offsets = scale * rng.normal(size=(*positions, 18))
    offsets[:, 0] = np.round(offsets[:, 0])
    inputs = dict(
        x=rng.normal(size=(2, *size, 3)),
        offsets=offsets,
        mask=rng.uniform(size=(*positions, 9)),
        kernel=rng.normal(size=(3, 3, 3, 4)),
        bias=rng.normal(size=4),
    )
    return {name: value.astype(np.float32) for name, value in inputs.items()}


def run_convolution(operation, inputs, stride):
    """The output of an operation as deformable_conv above, and gradients of the sum of its squares, as ours:
    {"y": ..., "x": ..., ...}."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in inputs.items()}
    maps = (_first(tensors[name]) for name in ("x", "offsets", "mask"))
    y = _last(operation(*maps, tensors["kernel"].permute(3, 2, 0, 1), tensors["bias"], stride))
    (y**2).sum().backward()
    return dict(y=y.detach().numpy()) | {name: value.grad.numpy() for name, value in tensors.items()}


def torchvision_convolution(x, offset, mask, weight, bias, stride):
    """torchvision's, which needs its compiled operations."""
    from torchvision.ops import deform_conv2d

    return deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=mask)


def random_boxes(count, seed=0):
    """float32[count, 4] with positive sides, of which some are disjoint."""
    corners = np.random.default_rng(seed).uniform(0, 100, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1) + 1], 1).astype(np.float32)


def random_candidates(count, seed=0):
    """(boxes of whole coordinates, scores with ties, labels): inputs of non-maximum suppression."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 16, (count, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], 1).astype(np.float32)
    return boxes, (rng.integers(1, 20, count) / 20).astype(np.float32), rng.integers(0, 4, count)


def run_losses(logits, positive, boxes, others):
    """torchvision's focal loss, and its GIoU loss of pairs, with their gradients."""
    from torchvision import ops

    logits, boxes = (torch.tensor(x, requires_grad=True) for x in (logits, boxes))
    focal = ops.sigmoid_focal_loss(logits, torch.tensor(positive).float())
    overlap = ops.generalized_box_iou_loss(boxes, torch.tensor(others))
    (focal.sum() + overlap.sum()).backward()
    values = dict(focal=focal, giou_loss=overlap, focal_grad=logits.grad, giou_grad=boxes.grad)
    values["iou"] = ops.box_iou(boxes, torch.tensor(others))
    return {name: value.detach().numpy() for name, value in values.items()}


def run_coder(boxes, anchors):
    """torchvision's coder: (deltas of boxes, boxes of twice these deltas)."""
    from torchvision.models.detection._utils import BoxCoder

    coder, anchors = BoxCoder((10.0, 10.0, 5.0, 5.0)), torch.tensor(anchors)
    deltas = coder.encode_single(torch.tensor(boxes), anchors)
    return deltas.numpy(), coder.decode_single(2 * deltas, anchors).numpy()


def _first(x):
    return torch.as_tensor(x).permute(0, 3, 1, 2)


def _last(x):
    return x.permute(0, 2, 3, 1)
