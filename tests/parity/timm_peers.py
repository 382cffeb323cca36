"""Small random ViTs of timm, in the folders that timm writes. Needs PyTorch and timm."""

import timm
import torch

from tests.parity import dino_peers

SMALL = dict(img_size=64, embed_dim=64, depth=2, num_heads=4, dynamic_img_size=True)
# The models of the golden files, {format: (architecture, arguments)}.
_TINY = dict(img_size=32, patch_size=8, embed_dim=16, num_heads=2, mlp_ratio=2.0)
GOLDEN = {
    "timm_pe": ("vit_pe_core_base_patch16_224", dict(num_classes=5, attn_pool_mlp_ratio=3.0, **_TINY)),
    "timm_dinov3": ("vit_small_plus_patch16_dinov3_qkvb", _TINY),
    "timm_vit": ("vit_base_patch16_224", dict(num_classes=5, **_TINY)),
}


def saved(name, options, folder, seed=3):
    """timm's model of that architecture, small and random; timm writes it into the folder."""
    peer = dino_peers.randomise(timm.create_model(name, **SMALL | options), seed)
    timm.models.save_for_hf(peer, folder, safe_serialization=True)
    return peer


def run(peer, images):
    """dict(patches: [B, N, D] after the final norm, pooled: [B, D], output: what the head makes of it)."""
    with torch.no_grad():
        tokens = peer.forward_features(dino_peers.pixels(images))
        pooled = peer.forward_head(tokens, pre_logits=True)
        found = dict(patches=tokens[:, peer.num_prefix_tokens :], pooled=pooled, output=peer.head(pooled))
    return {name: value.numpy() for name, value in found.items()}
