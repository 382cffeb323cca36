"""ViTDet's simple feature pyramid in PyTorch, put together from its layers, and its weights as ours."""

import numpy as np
import torch
from torch import nn


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def simple_pyramid(width: int, channels: int, doublings=(2, 1, 0, -1)) -> nn.ModuleList:
    """One sequence of layers for each scale 2 ** doublings; parameters random, those of norms too."""
    levels = nn.ModuleList(_level(width, channels, n) for n in doublings)
    with torch.no_grad():
        for parameter in levels.parameters():
            parameter.normal_(0, 0.3).add_(0.2 if parameter.ndim == 1 else 0)
    return levels


def _level(width, channels, doublings):
    layers = [nn.MaxPool2d(2**-doublings)] if doublings < 0 else []
    for j in range(max(doublings, 0)):
        layers += [LayerNorm2d(width, 1e-6), nn.GELU()] if j else []
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels, 1e-6)]
    return nn.Sequential(
        *layers, nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels, 1e-6)
    )


def parameters(levels: nn.ModuleList) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of SimpleFeaturePyramid."""
    result = {}
    for i, level in enumerate(levels):
        norms = iter(["norm0"] * any(isinstance(x, nn.GELU) for x in level) + ["conv1_norm", "conv3_norm"])
        ups = 0
        for layer in level:
            arrays = {name: x.detach().numpy() for name, x in layer.named_parameters()}
            if isinstance(layer, nn.ConvTranspose2d):
                kernel = arrays["weight"].transpose(0, 2, 3, 1)
                result[f"level{i}_up{ups}"] = dict(kernel=kernel, bias=arrays["bias"])
                ups += 1
            elif isinstance(layer, nn.Conv2d):
                name = f"level{i}_conv{layer.kernel_size[0]}"
                result[name] = dict(kernel=arrays["weight"].transpose(2, 3, 1, 0))
            elif isinstance(layer, LayerNorm2d):
                result[f"level{i}_{next(norms)}"] = dict(scale=arrays["weight"], bias=arrays["bias"])
    return result


def outputs(levels: nn.ModuleList, x: np.ndarray) -> list[np.ndarray]:
    """The maps [B, h, w, channels] of x: float32[B, H, W, D]."""
    with torch.no_grad():
        tensor = torch.from_numpy(x).permute(0, 3, 1, 2)
        return [level(tensor).permute(0, 2, 3, 1).numpy() for level in levels]
