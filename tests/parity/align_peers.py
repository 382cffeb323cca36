"""Random ALIGNs of transformers, and inputs for them. Needs PyTorch and transformers.

Every parameter and statistic is random, for the reason that tests/parity/peers.py gives.
"""

import numpy as np
import torch
import transformers

from tests.parity import clip_peers, peers

# Seven stages of one block each, as narrow as these go; a stage of stride 1 must widen.
THIN = dict(width_coefficient=0.2, depth_coefficient=0.25, strides=[2, 2, 2, 1, 1, 2, 1])
# The published strides, and blocks with shortcuts.
SMALL = dict(width_coefficient=0.5, depth_coefficient=0.5)
# Four stages with other kernels, widths, strides, repeats and expansions.
OTHER = dict(
    width_coefficient=0.5,
    depth_coefficient=0.7,
    kernel_sizes=[5, 3, 7, 3],
    in_channels=[32, 48, 64, 96],
    out_channels=[48, 64, 96, 128],
    strides=[1, 2, 2, 1],
    num_block_repeats=[2, 1, 3, 2],
    expand_ratios=[2, 4, 1, 6],
)
# kakaobrain/align-base: EfficientNet-B7, whose stem's and blocks' paddings make 289 pixels 9.
BASE = dict(width_coefficient=2.0, depth_coefficient=3.1)
# Halved five times with zeros after an odd map's last pixel this is 2; halved as by SAME it is 3.
SIZE = 75
TEXT = dict(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=12,
)


def hf_align(shape, image_size=SIZE, text=TEXT, half=False, seed=0):
    """transformers' AlignModel; half: float16's weights, for small files."""
    last = shape.get("out_channels", [320])[-1]
    dim = max(8, int(last * shape["width_coefficient"] + 4) // 8 * 8)
    config = transformers.AlignConfig(
        text_config=text,
        vision_config=shape | dict(image_size=image_size, hidden_dim=dim),
        projection_dim=dim,
        attn_implementation="eager",
    )
    peer = peers.randomise(transformers.AlignModel(config), seed).eval()
    _rescale(peer.vision_model, images(image_size, count=32 if image_size == SIZE else 4, seed=9), seed)
    with torch.no_grad():
        peer.temperature.fill_(0.3)
        for value in peer.state_dict().values() if half else ():
            value.copy_(value.half())
    return peer


def _rescale(tower, images, seed):
    """Running statistics of these images: with others each block would pass on a fifth of what it is
    given, and the embedding depend on little but the biases."""
    torch.manual_seed(seed)
    norms = [module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        tower.train()(clip_peers.pixels(images, clip_peers.HALF_VIEW))
    for norm in norms:
        norm.num_batches_tracked.zero_()
    tower.eval()


def images(size=SIZE, count=2, seed=1):
    """uint8[count, size, size, 3] of squares of one colour: noise would average out in every embedding."""
    coarse = clip_peers.images(-(-size // 15), count, seed)
    return coarse.repeat(15, axis=1).repeat(15, axis=2)[:, :size, :size]


def texts(length=9, seed=2):
    """(ids: int32[2, length], mask: bool[2, length]), a full text and a short one."""
    ids = np.random.default_rng(seed).integers(0, 50, (2, length)).astype(np.int32)
    return ids, np.arange(length) < np.array([length, 4])[:, None]


def run(peer, images, ids, mask):
    """What transformers makes of them: image, text: float32[B, D], normalised; logits: float32[B, B],
    images by texts; patches: float32[B, H', W', C], the last block's output."""
    with torch.no_grad():
        found = peer(
            pixel_values=clip_peers.pixels(images, clip_peers.HALF_VIEW),
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask).long(),
        )
    return dict(
        image=found.image_embeds.numpy(),
        text=found.text_embeds.numpy(),
        logits=found.logits_per_image.numpy(),
        patches=found.vision_model_output.last_hidden_state.permute(0, 2, 3, 1).numpy(),
    )
