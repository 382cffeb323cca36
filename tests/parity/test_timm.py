"""ViTs of timm on random weights, through the folders that timm writes. Needs timm."""

import json
import re

import numpy as np
import pytest

import big_ssl
from big_ssl.data import preprocessing
from big_ssl.weights import timm_config, timm_dinov2, timm_dinov3, timm_pe, timm_vit
from big_ssl.weights.formats import read_checkpoint
from big_ssl.weights.guess import guess
from tests.parity import goldens

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
timm = pytest.importorskip("timm", reason="these tests need timm")

from PIL import Image  # noqa: E402

from tests.parity import dino_peers, timm_peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402

pytestmark = pytest.mark.parity

# The table's size, a larger one, and ones that are not square, in patches.
GRIDS = [(4, 4), (6, 6), (2, 5), (5, 3)]
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
        ("vit_giant_patch14_reg4_dinov2", dict(img_size=56, mlp_ratio=3.0)),
    ],
    "timm_vit": [
        ("vit_base_patch16_224", dict(num_classes=7)),
        ("deit_tiny_patch16_224", dict(num_classes=0, mlp_ratio=3.0)),
    ],
}
CASES = {name: (kind, name, options) for kind, peers in PEERS.items() for name, options in peers}
MODULES = (timm_pe, timm_dinov3, timm_dinov2, timm_vit)


@pytest.mark.parametrize(("kind", "name", "options"), CASES.values(), ids=CASES)
def test_features(kind, name, options, tmp_path):
    peer = timm_peers.saved(name, options, tmp_path)
    assert guess(tmp_path) == guess(tmp_path / "model.safetensors") == kind
    checkpoint = read_checkpoint(kind, tmp_path)
    patch = peer.patch_embed.patch_size[0]
    for rows, columns in GRIDS:
        images = dino_peers.images((patch * rows, patch * columns))
        expected = timm_peers.run(peer, images)
        found = goldens.assert_outputs(*checkpoint, images, expected)
        column = "architecture" if rows == columns else "other sizes"
        parity_figure(kind, column, found["patches"], expected["patches"], "timm")
    assert (peer.num_classes == 0) == (not {"embedding_head", "classes"} & checkpoint[0].keys())


def test_what_the_names_of_published_architectures_mean():
    """Depth, heads, and what the formats take for granted, of all architectures that they read."""
    for name in timm.list_models():
        for module in (module for module in MODULES if re.fullmatch(module.ARCHITECTURE, name)):
            files = {"config.json": dict(architecture=name)}
            stated = timm_config.arguments(files, module.ARCHITECTURE, module.SIZES)
            with torch.device("meta"):
                peer = timm.create_model(name)
            actual = dict(depth=len(peer.blocks), num_heads=peer.blocks[0].attn.num_heads)
            assert stated == actual, name
            assert peer.norm.eps == (1e-5 if module in (timm_pe, timm_dinov3) else 1e-6)
            if module is timm_pe:
                assert (peer.attn_pool.num_heads, peer.rope.temperature) == (8, 10_000)
                assert peer.rope.ref_feat_shape == peer.patch_embed.grid_size
            if module is timm_dinov3:
                assert peer.rope.temperature == 100


@pytest.mark.parametrize(
    "changes",
    [
        dict(crop_pct=0.9),
        dict(crop_pct=1.0, crop_mode="squash", interpolation="bilinear"),
        dict(crop_pct=0.8, crop_mode="squash", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]),
    ],
)
def test_pictures_are_preprocessed_as_by_timm(changes, tmp_path):
    peer = timm_peers.saved("vit_base_patch16_224", {}, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"] |= changes
    file.write_text(json.dumps(config))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(changes, model=peer))
    picture = np.random.default_rng(0).integers(0, 256, (1, 90, 131, 3), np.uint8)
    ours = read_checkpoint("timm_vit", tmp_path)[0]
    view = ours["views"]["image"]
    found = (preprocessing.of(ours)(picture)[0] / 255 - view["mean"]) / view["std"]
    expected = transform(Image.fromarray(picture[0])).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    parity_figure("timm_vit", "preprocessing", found, expected, "timm")


def test_a_loaded_folder_embeds_pictures(tmp_path):
    peer = timm_peers.saved("vit_pe_core_base_patch16_224", dict(num_classes=12), tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    expected = timm_peers.run(peer, ((picture / 255 - 0.5) / 0.5).astype(np.float32))["output"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(
        big_ssl.load(tmp_path).encode_image(picture, resize=False), expected, **goldens.CLOSE
    )
