"""CLIP in PyTorch, written from the paper's section 2.4 with the names that OpenAI's files have."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

TEXT = dict(vocab_size=50, length=9, width=16, depth=2, heads=2)
VIT = dict(image_size=24, patch=8, width=24, depth=2, heads=3)
RESNET = dict(image_size=64, width=4, blocks=(2, 1, 2, 1))


class Layer(nn.Module):
    """Pre-norm: attention, then an MLP of four times the width with QuickGELU."""

    def __init__(self, width, heads, activation):
        super().__init__()
        self.activation = activation
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp.c_proj(self.activation(self.mlp.c_fc(self.ln_2(x))))


class Transformer(nn.Module):
    def __init__(self, width, depth, heads, activation):
        super().__init__()
        self.resblocks = nn.ModuleList(Layer(width, heads, activation) for _ in range(depth))

    def forward(self, x, mask=None):
        for layer in self.resblocks:
            x = layer(x, mask)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, image_size, patch, width, depth, heads, dim, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + (image_size // patch) ** 2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, heads, activation)
        self.proj = nn.Parameter(torch.zeros(width, dim))

    def tokens(self, x):
        """All tokens after the last norm, [B, 1 + N, D]."""
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))

    def forward(self, x):
        return self.tokens(x)[:, 0] @ self.proj


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.avg_pool2d(F.relu(self.bn2(self.conv2(y))), self.stride)
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(F.avg_pool2d(x, self.stride))
        return F.relu(x + y)


class AttentionPool(nn.Module):
    def __init__(self, side, width, heads, dim):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(side**2 + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, dim)

    def forward(self, x):
        x = x.flatten(2).mT
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        query, key, value = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return self.c_proj((weights @ value).transpose(1, 2).flatten(1))


class ResNet(nn.Module):
    def __init__(self, image_size, width, blocks, dim):
        super().__init__()
        sizes = [3, width // 2, width // 2, width]
        for i in (1, 2, 3):
            stride = 2 if i == 1 else 1
            setattr(self, f"conv{i}", nn.Conv2d(sizes[i - 1], sizes[i], 3, stride, 1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(sizes[i]))
        inputs = width
        for i, count in enumerate(blocks):
            inside = width * 2**i
            layers = [Bottleneck(inputs, inside, 1 if i == 0 else 2)]
            layers += [Bottleneck(4 * inside, inside, 1) for _ in range(count - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))
            inputs = 4 * inside
        self.attnpool = AttentionPool(image_size // 32, inputs, 32 * width // 64, dim)

    def map(self, x):
        """The last map, [B, C, H / 32, W / 32]."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x

    def forward(self, x):
        return self.attnpool(self.map(x))


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


class Clip(nn.Module):
    """forward: pixels [B, 3, H, W] and ids [B, L] to their embeddings, not normalised."""

    def __init__(self, kind="vit", dim=12, activation=quick_gelu):
        super().__init__()
        width = TEXT["width"]
        if kind == "vit":
            self.visual = VisionTransformer(**VIT, dim=dim, activation=activation)
        else:
            self.visual = ResNet(**RESNET, dim=dim)
        self.transformer = Transformer(width, TEXT["depth"], TEXT["heads"], activation)
        self.token_embedding = nn.Embedding(TEXT["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.zeros(TEXT["length"], width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_text(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), ids.argmax(1)] @ self.text_projection

    def forward(self, pixels, ids):
        return self.visual(pixels), self.encode_text(ids)
