"""DINOv2's training step in PyTorch, from the papers' equations, around transformers' Dinov2Model.

tests/parity/test_dinov2_step.py compares it with ours term by term, benchmarks/dinov2_step.py in time.
A batch is dict(global_crops: float32[B, 2, 3, H, W], local_crops: float32[B, n, 3, h, w], mask: bool[B, 2,
N], the patches that the student does not see). Needs PyTorch and transformers.
"""

import copy
import pathlib
import re
from typing import NamedTuple

import torch
import transformers
from torch import nn
from torch.nn import functional as F

# Not decayed (dinov2/utils/param_groups.py of the published code); all else is, tokens and lengths too.
_NOT_DECAYED = re.compile(r"bias$|norm|layer_scale")
_LAYER = re.compile(r"\.layers?\.(\d+)\.")


class Head(nn.Module):
    """[..., D] -> [..., K] (arXiv 2104.14294, appendix C); names as in the published files."""

    def __init__(self, width, prototypes, hidden, bottleneck):
        super().__init__()
        linear = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)
        self.mlp = nn.Sequential(linear[0], nn.GELU(), linear[1], nn.GELU(), linear[2])
        self.last_layer = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, prototypes, bias=False))

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Network(nn.Module):
    """A backbone with its heads; ibot_head: None where the class tokens' serves patches too."""

    def __init__(self, backbone, dino_head, ibot_head=None):
        super().__init__()
        self.backbone, self.dino_head = backbone, dino_head
        if ibot_head is not None:
            self.ibot_head = ibot_head

    def tokens(self, crops, mask=None):
        """[B, n, 3, H, W] -> class tokens [B, n, D], patches [B, n, N, D]."""
        masked = None if mask is None else mask.flatten(0, 1)
        found = self.backbone(crops.flatten(0, 1), bool_masked_pos=masked).last_hidden_state
        found = found.unflatten(0, crops.shape[:2])
        return found[:, :, 0], found[:, :, 1:]

    def patch_head(self):
        """The one that patches go through."""
        return getattr(self, "ibot_head", self.dino_head)


class Recipe(NamedTuple):
    """What does not change from step to step. center_momentum: None for Sinkhorn and Knopp's iterations;
    koleo_group: examples among which the nearest is looked for; layer_decay, patch_rate: of rates."""

    center_momentum: float | None
    koleo_group: int
    layer_decay: float
    patch_rate: float
    betas: tuple[float, float]
    eps: float
    clip: float = 3.0
    student_temperature: float = 0.1
    koleo_weight: float = 0.1


class Numbers(NamedTuple):
    """A step's values of the schedules."""

    learning_rate: float
    weight_decay: float
    teacher_temperature: float
    momentum: float


def sinkhorn(scores, temperature, iterations=3):
    """Targets [M, K] of a teacher's scores [M, K]: the published loop (arXiv 2006.09882, appendix A)."""
    q = torch.exp(scores / temperature).T
    prototypes, points = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / points
    return (q * points).T


def dino_loss(said, targets, temperature):
    """said: [B, S, K], targets: [B, 2, K]; the mean over pairs of different crops (arXiv 2104.14294,
    equation 3)."""
    log_said, views, total, pairs = F.log_softmax(said / temperature, -1), said.shape[1], 0.0, 0
    for taught in range(targets.shape[1]):
        for crop in range(views):
            if crop != taught:
                total = total - (targets[:, taught] * log_said[:, crop]).sum(-1).mean()
                pairs += 1
    return total / pairs


def ibot_loss(said, targets, mask, temperature):
    """said, targets: [M, K] of the masked patches; the mean over a crop's, then over all crops (arXiv
    2111.07832, equation 2)."""
    each = -(targets * F.log_softmax(said / temperature, -1)).sum(-1)
    share = 1 / mask.sum(-1, keepdim=True).expand_as(mask)[mask]
    return (each * share).sum() / mask[..., 0].numel()


def koleo_loss(tokens, group, epsilon=1e-8):
    """tokens: [B, D] (arXiv 1806.03198, section 3.3): within groups of neighbours in the batch."""
    points = F.normalize(tokens, dim=-1).unflatten(0, (-1, group))
    with torch.no_grad():
        cosines = points @ points.mT - 3 * torch.eye(group)
        nearest = cosines.argmax(-1, keepdim=True).expand_as(points)
    distance = F.pairwise_distance(points, points.gather(1, nearest), eps=epsilon)
    return -torch.log(distance + epsilon).mean()


class Trainer:
    """A student, its average, AdamW and the centers: {"dino": [K], "ibot": [K]}, moved with each step."""

    def __init__(self, student, recipe: Recipe):
        self.student, self.recipe = student.train(), recipe
        self.teacher = copy.deepcopy(student).eval().requires_grad_(False)
        self.centers = {"dino": torch.tensor(0.0), "ibot": torch.tensor(0.0)}
        self.optimizer = torch.optim.AdamW(self._groups(), betas=recipe.betas, eps=recipe.eps, fused=True)

    def step(self, batch, numbers: Numbers) -> dict:
        """One whole step: {term: its value before it, and "loss", the weighted sum}."""
        terms = self.backward(batch, numbers)
        self.update(numbers)
        return terms

    def backward(self, batch, numbers: Numbers) -> dict:
        """The terms, as in `step`; their gradient is left in the student."""
        self.optimizer.zero_grad()
        terms = self._terms(batch, numbers)
        terms["loss"] = terms["dino"] + terms["ibot"] + self.recipe.koleo_weight * terms["koleo"]
        terms["loss"].backward()
        return {name: value.item() for name, value in terms.items()}

    def update(self, numbers: Numbers) -> None:
        """Clips, updates the student, then its average."""
        for part in self.student.children():
            nn.utils.clip_grad_norm_(part.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = numbers.learning_rate * group["rate"]
            group["weight_decay"] = numbers.weight_decay * group["decayed"]
        self.optimizer.step()
        with torch.no_grad():
            old, new = list(self.teacher.parameters()), list(self.student.parameters())
            torch._foreach_mul_(old, numbers.momentum)
            torch._foreach_add_(old, new, alpha=1 - numbers.momentum)

    def _terms(self, batch, numbers):
        large, small, mask = batch["global_crops"], batch["local_crops"], batch["mask"]
        with torch.no_grad():
            tokens, patches = self.teacher.tokens(large)
            scores = dict(dino=self.teacher.dino_head(tokens), ibot=self.teacher.patch_head()(patches[mask]))
            targets = {name: self._targets(name, x, numbers) for name, x in scores.items()}
        tokens, patches = self.student.tokens(large, mask)
        said = self.student.dino_head(torch.cat([tokens, self.student.tokens(small)[0]], 1))
        of_patches = self.student.patch_head()(patches[mask])
        temperature = self.recipe.student_temperature
        return dict(
            dino=dino_loss(said, targets["dino"], temperature),
            ibot=ibot_loss(of_patches, targets["ibot"], mask, temperature),
            koleo=sum(koleo_loss(tokens[:, crop], self.recipe.koleo_group) for crop in range(2)),
        )

    def _targets(self, name, scores, numbers):
        """What a teacher's scores [..., K] are made into; a center is the one that earlier steps left."""
        flat, momentum = scores.flatten(0, -2), self.recipe.center_momentum
        if momentum is None:
            return sinkhorn(flat, numbers.teacher_temperature).reshape(scores.shape)
        center = self.centers[name]
        self.centers[name] = momentum * center + (1 - momentum) * flat.mean(0)
        return F.softmax((scores - center) / numbers.teacher_temperature, -1)

    def _groups(self):
        depth = self.student.backbone.config.num_hidden_layers
        groups = {}
        for name, value in self.student.named_parameters():
            kind = self._rate(name, depth), not _NOT_DECAYED.search(name)
            groups.setdefault(kind, []).append(value)
        return [dict(params=params, rate=rate, decayed=decayed) for (rate, decayed), params in groups.items()]

    def _rate(self, name, depth):
        """By layers from the last one down; the patch embedding's is slower still."""
        if match := _LAYER.search(name):
            return self.recipe.layer_decay ** (depth - int(match[1]))
        first = self.recipe.layer_decay ** (depth + 1) if "embeddings" in name else 1.0
        return first * (self.recipe.patch_rate if "patch_embeddings" in name else 1.0)


def vit(width, depth, heads, patch, image_size, **options):
    """transformers' Dinov2Model of this size."""
    config = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=image_size,
        **options,
    )
    return transformers.Dinov2Model(config)


def save(network: Network, folder) -> None:
    """The backbone in transformers' format, and heads.pth by the names of DINOv2's trainings."""
    network.backbone.save_pretrained(folder)
    heads = {name: x for name, x in network.state_dict().items() if "_head." in name}
    torch.save(heads, pathlib.Path(folder) / "heads.pth")
