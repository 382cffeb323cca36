"""ViTs of timm on random weights, through the folders that timm writes. Needs timm."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from big_ssl.weights import architecture
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.guess import guess

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
timm = pytest.importorskip("timm", reason="parity with timm needs it")

from tests.parity import dino_peers  # noqa: E402  (needs PyTorch)

pytestmark = pytest.mark.parity

# Two float32 networks that add in another order; outputs are of order one.
CLOSE = dict(rtol=1e-4, atol=1e-4)
SMALL = dict(img_size=64, embed_dim=64, depth=2, num_heads=4, dynamic_img_size=True)
# The table's or the architecture's size, a larger one, and ones that are not square.
SIZES = [(64, 64), (96, 96), (32, 80), (80, 48)]
PEERS = {
    "timm_pe": [
        ("vit_pe_core_base_patch16_224", dict(num_classes=12, attn_pool_num_heads=2)),
        ("vit_pe_core_tiny_patch16_384", dict(num_classes=0, mlp_ratio=3.0, attn_pool_mlp_ratio=2.0)),
        ("vit_pe_core_large_patch14_336", dict(img_size=56, rope_temperature=500.0, ref_feat_shape=7)),
        ("vit_pe_core_gigantic_patch14_448", dict(img_size=56, num_classes=12)),
    ],
    "timm_dinov3": [
        ("vit_base_patch16_dinov3_qkvb", dict(global_pool="token")),
        ("vit_huge_plus_patch16_dinov3", dict(rope_temperature=50.0)),
        ("vit_small_plus_patch16_dinov3_qkvb", dict(num_reg_tokens=0)),
    ],
    "timm_dinov2": [
        ("vit_small_patch14_dinov2", dict(img_size=56)),
        ("vit_giant_patch14_reg4_dinov2", dict(img_size=56)),
    ],
    "timm_vit": [
        ("vit_base_patch16_224", dict(num_classes=7)),
        ("deit_tiny_patch16_224", dict(num_classes=0, mlp_ratio=3.0)),
    ],
}
CASES = {name: (kind, name, options) for kind, peers in PEERS.items() for name, options in peers}


def saved(name, options, folder):
    """timm's model of that architecture, small and random, and its folder as timm writes it."""
    peer = dino_peers.randomise(timm.create_model(name, **SMALL | options), seed=3)
    timm.models.save_for_hf(peer, folder, safe_serialization=True)
    return peer.eval()


def run(peer, images):
    """(all tokens after the final norm, the pooled output before the head, and after it)."""
    with torch.no_grad():
        tokens = peer.forward_features(dino_peers.pixels(images))
        return tuple(
            x.numpy() for x in (tokens, peer.forward_head(tokens, pre_logits=True), peer.forward_head(tokens))
        )


@functools.cache
def compiled(module):
    return jax.jit(module.apply)


@pytest.mark.parametrize(("kind", "name", "options"), CASES.values(), ids=CASES)
def test_features(kind, name, options, tmp_path):
    peer = saved(name, options, tmp_path)
    assert guess(tmp_path) == kind
    config, weights = read_checkpoint(kind, tmp_path)
    modules, variables = architecture.modules(config), unflatten_dict(weights, sep="/")
    image_variables = architecture.encoder_variables(variables, "image")
    head = modules.embedding or modules.classifier
    assert (head is None) == (peer.num_classes == 0)
    for size in SIZES:
        size = tuple(side // 16 * peer.patch_embed.patch_size[0] for side in size)
        images = dino_peers.images(size)
        tokens, pooled, projected = run(peer, images)
        ours = compiled(modules.image)(image_variables, images)
        np.testing.assert_allclose(ours["patches"], tokens[:, peer.num_prefix_tokens :], **CLOSE)
        np.testing.assert_allclose(ours["pooled"], pooled, **CLOSE)
        print(
            kind,
            name,
            size,
            *(
                np.abs(a - b).max()
                for a, b in ((ours["patches"], tokens[:, peer.num_prefix_tokens :]), (ours["pooled"], pooled))
            ),
        )
        if head is not None:
            (params,) = variables["params"]["heads"].values()
            (found,) = head.apply(dict(params=params), dict(image=ours)).values()
            np.testing.assert_allclose(found, projected, **CLOSE)
