"""Layers, tokens by name and attention of a loaded model, against transformers' own, at several sizes."""

import numpy as np
import pytest

import big_ssl
from tests.parity.other_sizes import CLOSE, random_images

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import clip_peers, dino_peers  # noqa: E402  (needs PyTorch)

pytestmark = pytest.mark.parity

# For patches of 8 pixels: larger than the position tables, not square, with a rest that is no whole patch.
SIZES = [(40, 24), (56, 56), (27, 45)]
# {format: (the peer, its registers, whether it has a class token)}.
PEERS = dict(
    hf_dinov2=(lambda: dino_peers.hf_dinov2(3, swiglu=True, seed=21), 3, True),
    hf_vit=(lambda: dino_peers.hf_vit(seed=22), 0, True),
    hf_clip=(lambda: clip_peers.hf_clip(seed=23), 0, True),
    hf_siglip=(lambda: clip_peers.hf_siglip(seed=24), 0, False),
)


@pytest.fixture(params=PEERS)
def pair(request, tmp_path):
    """(our model, transformers' encoder of images, registers, class tokens)."""
    make, registers, has_class = PEERS[request.param]
    peer = make()
    peer.save_pretrained(tmp_path)
    return big_ssl.load(tmp_path), getattr(peer, "vision_model", peer), registers, int(has_class)


def run(ours, encoder, images):
    """transformers' outputs, with hidden states and attentions; positions are interpolated."""
    pixels = clip_peers.pixels(images, ours.config["views"]["image"])
    interpolate = {} if type(encoder).__name__.startswith("Dinov2") else dict(interpolate_pos_encoding=True)
    with torch.no_grad():
        return encoder(pixels, output_hidden_states=True, output_attentions=True, **interpolate)


def final_norm(encoder, states):
    norm = getattr(encoder, "layernorm", None) or encoder.post_layernorm
    with torch.no_grad():
        return norm(states)


def assert_tokens(tokens, expected, registers, first):
    """expected: [B, T, D] of PyTorch, the class token, the registers, the patches."""
    expected = expected.numpy()
    parts = dict(patches=expected[:, first + registers :])
    if first:
        parts["cls"] = expected[:, 0]
    if registers:
        parts["registers"] = expected[:, first : first + registers]
    assert set(tokens) == set(parts)
    for name, array in parts.items():
        np.testing.assert_allclose(tokens[name], array, **CLOSE, err_msg=name)


def test_layers_before_and_after_the_final_norm(pair):
    ours, encoder, registers, first = pair
    for size in SIZES:
        images = random_images(size)
        states = run(ours, encoder, images).hidden_states
        assert len(states) == 3
        raw = ours.intermediate_layers(images, 2, norm=False, resize=False)
        normed = ours.intermediate_layers(images, [1, 0], resize=False)[::-1]
        for i in range(2):
            assert_tokens(raw[i], states[i + 1], registers, first)
            assert_tokens(normed[i], final_norm(encoder, states[i + 1]), registers, first)
        assert_tokens(
            ours.image_tokens(images, resize=False), final_norm(encoder, states[2]), registers, first
        )


def test_attention_of_every_layer(pair):
    ours, encoder, registers, first = pair
    for size in SIZES:
        images = random_images(size)
        for layer, weights in enumerate(run(ours, encoder, images).attentions):
            found = ours.attention_maps(images, layer, resize=False)
            np.testing.assert_allclose(found, weights, **CLOSE)
            if first:
                expected = weights[:, :, 0, first + registers :].unflatten(-1, (size[0] // 8, size[1] // 8))
                maps = ours.class_attention(images, layer, resize=False)
                np.testing.assert_allclose(maps, expected, **CLOSE)
            assert weights.numpy().std() > 1e-3


@pytest.mark.parametrize("apply_layernorm", [True, False])
def test_grids_are_the_feature_maps_of_a_backbone(apply_layernorm, tmp_path):
    """transformers' for dense heads, as DINOv2's get_intermediate_layers: channels first there, last here."""
    peer = dino_peers.hf_dinov2(registers=3, seed=25)
    peer.save_pretrained(tmp_path)
    backbone = transformers.Dinov2WithRegistersBackbone.from_pretrained(
        tmp_path, out_indices=(1, 2), apply_layernorm=apply_layernorm, attn_implementation="eager"
    ).eval()
    ours = big_ssl.load(tmp_path)
    for size in ((40, 24), (56, 56)):
        images = random_images(size)
        with torch.no_grad():
            maps = backbone(clip_peers.pixels(images, ours.config["views"]["image"])).feature_maps
        layers = ours.intermediate_layers(images, 2, reshape=True, norm=apply_layernorm, resize=False)
        for tokens, expected in zip(layers, maps, strict=True):
            np.testing.assert_allclose(tokens["patches"].transpose(0, 3, 1, 2), expected, **CLOSE)


def test_dinov2_at_518_pixels(tmp_path):
    """The size of its position table, on weights whose evaluation crops 224; and the same in bfloat16."""
    peer = dino_peers.hf_dinov2(registers=3, seed=26, image_size=518, patch_size=14)
    peer.save_pretrained(tmp_path)
    ours, images = big_ssl.load(tmp_path, batch_size=1), random_images((518, 518), 1)
    expected = run(ours, peer, images).last_hidden_state
    tokens = ours.image_tokens(images, resize=False)
    assert tokens["patches"].shape == (1, 37 * 37, 24)
    assert_tokens(tokens, expected, 3, 1)
    coarse = big_ssl.load(tmp_path, "bfloat16", batch_size=1).image_tokens(images, resize=False)
    assert {array.dtype for array in coarse.values()} == {np.dtype(np.float32)}
    error = np.abs(coarse["patches"] - tokens["patches"]).mean() / np.abs(tokens["patches"]).mean()
    assert 1e-4 < error < 0.05
