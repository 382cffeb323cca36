"""torchvision's feature pyramid with RetinaNet's two coarser levels, all parameters random."""

import numpy as np
import torch
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

WIDTHS, CHANNELS = (3, 4, 6), 5
# Of a picture of 88 x 136 pixels, and of 80 x 128: odd maps, then even ones.
SIZES = {"odd": ((11, 17), (6, 9), (3, 5)), "even": ((10, 16), (5, 8), (3, 4))}


def feature_pyramid():
    """FPN from maps of strides 8, 16 and 32 to P3, ..., P7."""
    torch.manual_seed(0)
    peer = FeaturePyramidNetwork(list(WIDTHS), CHANNELS, LastLevelP6P7(CHANNELS, CHANNELS))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0, 0.3)
    return peer.eval()


def params(peer):
    """The peer's parameters under our names."""
    names = {f"inner_blocks.{i}.0": f"lateral{i}" for i in range(3)}
    names |= {f"layer_blocks.{i}.0": f"output{i}" for i in range(3)}
    names |= {"extra_blocks.p6": "output3", "extra_blocks.p7": "output4"}
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    return {
        ours: dict(kernel=state[f"{theirs}.weight"].transpose(2, 3, 1, 0), bias=state[f"{theirs}.bias"])
        for theirs, ours in names.items()
    }


def maps(name):
    """float32[2, H, W, D] of each stride."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(2, *size, width)).astype(np.float32)
        for size, width in zip(SIZES[name], WIDTHS, strict=True)
    ]


def run(peer, inputs):
    """The outputs, float32[2, h, w, CHANNELS]."""
    tensors = {str(i): torch.tensor(x).permute(0, 3, 1, 2) for i, x in enumerate(inputs)}
    with torch.no_grad():
        return [x.permute(0, 2, 3, 1).numpy() for x in peer(tensors).values()]
