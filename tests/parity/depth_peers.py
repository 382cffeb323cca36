"""Small random DPT decoders of transformers, and the parameters of ours. Needs PyTorch and transformers.

Every parameter is random. The published head of DINOv2's depth models has a first convolution ("projection"),
which transformers builds for 256 channels alone: it is replaced by one of the decoder's width.
"""

import re

import numpy as np
import torch
import transformers
from flax.traverse_util import unflatten_dict
from transformers.models.dpt.modeling_dpt import DPTDepthEstimationHead, DPTNeck

from tests.parity import dino_peers

CHANNELS, HIDDEN, WIDTH, BINS = 8, (4, 6, 8, 8), 12, 8
# An odd grid, whose coarsest map is rounded up and then wider than the next one when it is doubled.
GRID = (5, 4)


class DPT(torch.nn.Module):
    """Tokens of four layers, [B, 1 + N, D] each, the class token first -> float[B, outputs, H, W], before
    the last ReLU.

    outputs: channels of the last convolution, 1 in transformers.
    """

    def __init__(self, outputs=1):
        super().__init__()
        config = transformers.DPTConfig(
            hidden_size=WIDTH,
            neck_hidden_sizes=list(HIDDEN),
            fusion_hidden_size=CHANNELS,
            reassemble_factors=[4, 2, 1, 0.5],
            readout_type="project",
            use_bias_in_fusion_residual=False,
            use_batch_norm_in_fusion_residual=False,
            add_projection=True,
            is_hybrid=False,
        )
        self.neck, self.head = DPTNeck(config), DPTDepthEstimationHead(config)
        self.head.projection = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.head.head[4] = torch.nn.Conv2d(32, outputs, 1)
        self.head.head[5] = torch.nn.Identity()

    def forward(self, tokens):
        maps = self.neck(tokens, *GRID)
        return self.head.head(torch.relu(self.head.projection(maps[-1])))


def dpt(outputs=1, seed=0):
    """A random DPT."""
    return dino_peers.randomise(DPT(outputs), seed)


def tokens(seed=1, count=2):
    """float32[4, count, 1 + N, D]: tokens of four layers."""
    shape = (4, count, 1 + GRID[0] * GRID[1], WIDTH)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(peer, tokens):
    """float32[B, H, W, outputs]: what the peer makes of `tokens`, before the last ReLU."""
    with torch.no_grad():
        return peer([torch.from_numpy(layer) for layer in tokens]).permute(0, 2, 3, 1).numpy()


def bins(logits):
    """float[B, H, W]: depths of 256 bins' logits, as DINOv2's decode head makes them, in float64."""
    weights = torch.relu(torch.from_numpy(logits).double()) + 0.1
    weights = weights / weights.sum(-1, keepdim=True)
    centres = torch.linspace(1e-3, 10, logits.shape[-1], dtype=torch.float64)
    return torch.einsum("bhwk,k->bhw", weights, centres).numpy()


_NAMES = (
    (r"neck\.reassemble_stage\.readout_projects\.(\d)\.0", r"decoder/readout\1"),
    (r"neck\.reassemble_stage\.layers\.(\d)\.projection", r"decoder/projection\1"),
    (r"neck\.reassemble_stage\.layers\.(\d)\.resize", r"decoder/resize\1"),
    (r"neck\.convs\.(\d)", r"decoder/input\1"),
    (r"neck\.fusion_stage\.layers\.(\d)\.projection", r"decoder/fusion\1/projection"),
    (
        r"neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)",
        r"decoder/fusion\1/residual\2_conv\3",
    ),
    (r"head\.projection", "project"),
    (r"head\.head\.0", "output0"),
    (r"head\.head\.2", "output1"),
    (r"head\.head\.4", "output2"),
)
# A convolution of one pixel is a linear layer.
_LINEAR = re.compile(r"(readout|projection)\d?$|output2$")


def params(peer):
    """The parameters of objectives.depth.DPTDepth."""
    flat = {}
    for name, value in peer.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module.startswith("neck.fusion_stage.layers.0.residual_layer1"):
            continue  # the first fusion has one map, and does not call it
        (path,) = (re.sub(pattern, new, module) for pattern, new in _NAMES if re.fullmatch(pattern, module))
        # Our fusions have the number of the map that they add; theirs begin with the last map.
        path = re.sub(r"fusion(\d)", lambda match: f"fusion{3 - int(match[1])}", path)
        flat[f"{path}/{'kernel' if kind == 'weight' else 'bias'}"] = _array(path, value.numpy())
    return unflatten_dict(flat, sep="/")


def _array(path, value):
    if value.ndim == 1:
        return value
    if value.ndim == 2 or _LINEAR.search(path):
        return value.reshape(value.shape[0], -1).T
    if re.search(r"resize[01]$", path):  # transposed: [in, out, h, w]
        return np.flip(value.transpose(2, 3, 0, 1), (0, 1))
    return value.transpose(2, 3, 1, 0)
