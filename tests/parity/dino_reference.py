"""The ViT of iBOT and DINOv2 in PyTorch, written from the papers with the names that their files have."""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        gate, x = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * x)


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width, heads, hidden, swiglu, layer_scale):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = (SwiGlu if swiglu else Mlp)(width, hidden)
        self.ls1, self.ls2 = (LayerScale(width) if layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


def resized_positions(table, grid):
    """table: [1, 1 + S * S, D] -> [1, 1 + H * W, D], by factors with DINO's offset of 0.1."""
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    squares = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factors = tuple((n + 0.1) / side for n in grid)
    squares = F.interpolate(squares, scale_factor=factors, mode="bicubic")
    assert squares.shape[2:] == grid
    return torch.cat([table[:, :1], squares.flatten(2).mT], 1)


class Vit(nn.Module):
    """forward: pixels [B, 3, H, W] and masks bool[B, N] to all blocks' tokens after the final norm,
    [depth, B, 1 + registers + N, D]. antialias: whether positions are resized as with registers.
    mask_token: its name in the file, None for none."""

    def __init__(
        self,
        width=24,
        depth=2,
        heads=3,
        hidden=40,
        patch=8,
        side=4,
        swiglu=False,
        layer_scale=True,
        registers=0,
        antialias=False,
        mask_token="mask_token",
    ):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        if mask_token:
            setattr(self, mask_token, nn.Parameter(torch.zeros(1, width)))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, swiglu, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mask_name, self.antialias, self.side = mask_token, antialias, side

    def embed(self, pixels, masks):
        x = self.patch_embed.proj(pixels)
        grid = tuple(x.shape[2:])
        x = x.flatten(2).mT
        if masks is not None:
            x = torch.where(masks[:, :, None], getattr(self, self.mask_name), x)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], 1) + self.positions(grid)
        registers = getattr(self, "register_tokens", x[:1, :0])
        return torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], 1)

    def positions(self, grid):
        if not self.antialias:
            return resized_positions(self.pos_embed, grid)
        squares = self.pos_embed[:, 1:].unflatten(1, (self.side,) * 2).permute(0, 3, 1, 2)
        squares = F.interpolate(squares, size=grid, mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], squares.flatten(2).mT], 1)

    def forward(self, pixels, masks=None):
        x, found = self.embed(pixels, masks), []
        for block in self.blocks:
            x = block(x)
            found.append(self.norm(x))
        return torch.stack(found)
