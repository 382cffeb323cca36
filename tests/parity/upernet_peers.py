"""transformers' UperNetHead with random parameters and statistics, and its weights as ours."""

import numpy as np
import torch
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetHead

WIDTHS, CHANNELS, CLASSES = (4, 5, 6, 8), 6, 5
# Of an image of 56 x 88 pixels, odd ones among them.
SIZES = ((14, 22), (7, 11), (4, 6), (2, 3))


def head() -> UperNetHead:
    """In evaluation mode."""
    torch.manual_seed(0)
    config = UperNetConfig(backbone_config=dict(model_type="swin"), hidden_size=CHANNELS, num_labels=CLASSES)
    peer = UperNetHead(config, list(WIDTHS))
    with torch.no_grad():
        for name, x in peer.state_dict().items():
            if name.endswith("running_var"):
                x.uniform_(0.5, 1.5)
            elif x.is_floating_point():
                x.normal_(0, 0.3)
    return peer.eval()


def variables(peer: UperNetHead) -> dict:
    """The variables of UPerNetSegmentation(5, channels=6)."""
    blocks = {f"pool{side}": f"psp_modules.{i}.1" for i, side in enumerate((1, 2, 3, 6))}
    blocks |= {"bottleneck": "bottleneck", "fusion": "fpn_bottleneck"}
    blocks |= {f"lateral{i}": f"lateral_convs.{i}" for i in range(3)}
    blocks |= {f"output{i}": f"fpn_convs.{i}" for i in range(3)}
    state = {name: x.numpy() for name, x in peer.state_dict().items()}
    params, statistics = {}, {}
    for ours, theirs in blocks.items():
        norm = f"{theirs}.batch_norm"
        params[ours] = dict(
            conv=dict(kernel=state[f"{theirs}.conv.weight"].transpose(2, 3, 1, 0)),
            norm=dict(scale=state[f"{norm}.weight"], bias=state[f"{norm}.bias"]),
        )
        statistics[ours] = dict(
            norm=dict(mean=state[f"{norm}.running_mean"], var=state[f"{norm}.running_var"])
        )
    classifier = dict(kernel=state["classifier.weight"][:, :, 0, 0].T, bias=state["classifier.bias"])
    return dict(params=dict(upernet=params, classifier=classifier), batch_stats=dict(upernet=statistics))


def maps() -> list[np.ndarray]:
    """float32[2, h, w, D] of each stride."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(2, *size, width)).astype(np.float32)
        for size, width in zip(SIZES, WIDTHS, strict=True)
    ]


def logits(peer: UperNetHead, inputs: list[np.ndarray]) -> np.ndarray:
    """float32[2, h, w, classes]."""
    with torch.no_grad():
        outputs = peer([torch.from_numpy(x).permute(0, 3, 1, 2) for x in inputs])
    return outputs.permute(0, 2, 3, 1).numpy()
