"""DINOv3's ViTs against transformers' on the same random weights, through files of three layouts."""

import numpy as np
import pytest

import big_ssl
from big_ssl.convert import convert
from big_ssl.weights.guess import guess

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import dino_peers, peers  # noqa: E402  (needs PyTorch)
from tests.parity.figures import parity_figure  # noqa: E402
from tests.parity.test_dino import assert_same, tower  # noqa: E402

pytestmark = pytest.mark.parity

# Rotary positions know no size of their own; not square, and with a rest that is no whole patch.
SIZES = [(32, 32), (56, 56), (24, 48), (27, 45)]
PEERS = dict(
    mlp={},
    gated=dict(use_gated_mlp=True, hidden_act="silu", rope_theta=50.0),
    no_bias=dict(use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False),
    all_biases=dict(key_bias=True, num_register_tokens=0, hidden_act="gelu_pytorch_tanh"),
)


def images_and_masks(size):
    images = dino_peers.images(size)
    return images, np.random.default_rng(2).random((2, size[0] // 8 * (size[1] // 8))) < 0.5


@pytest.mark.parametrize("options", PEERS.values(), ids=PEERS)
def test_transformers_files(options, tmp_path):
    peer = dino_peers.hf_dinov3(**options)
    peer.save_pretrained(tmp_path)
    assert guess(tmp_path) == "hf_dinov3"
    ours = tower("hf_dinov3", tmp_path)
    assert (ours[0].rope_base, ours[0].epsilon) == (options.get("rope_theta", 100.0), 1e-5)
    for size in SIZES:
        images, masks = images_and_masks(size)
        for mask in (None, masks):
            expected = dino_peers.run(peer, images, mask)
            assert_same("hf_dinov3", ours, images, mask, expected, library="transformers")


@pytest.mark.parametrize("options", PEERS.values(), ids=PEERS)
def test_files_of_the_official_layout(options, tmp_path):
    peer = dino_peers.hf_dinov3(**options)
    state = dino_peers.official_dinov3(peer)
    torch.save(state, tmp_path / "dinov3.pth")
    assert guess(tmp_path / "dinov3.pth") == "dinov3"
    if options.get("hidden_act") == "gelu_pytorch_tanh":
        peer.set_submodule("model.layer.0.mlp.act_fn", torch.nn.GELU())  # the only one of that layout
        peer.set_submodule("model.layer.1.mlp.act_fn", torch.nn.GELU())
    base = dict(rope_base=options["rope_theta"]) if "rope_theta" in options else {}
    ours = tower("dinov3", tmp_path / "dinov3.pth", base)
    for size in SIZES:
        images, masks = images_and_masks(size)
        expected = dino_peers.run(peer, images, masks)
        assert_same("dinov3", ours, images, masks, expected, library="transformers")


def test_a_teacher_with_rounded_periods(tmp_path):
    """Its periods are bfloat16's in float32, and it has a training's heads and norm."""
    peer = dino_peers.hf_dinov3(head_dim=32)
    state = dino_peers.official_dinov3(peer)
    exact = dino_peers.run(peer, images_and_masks((32, 32))[0])
    rounded = state["rope_embed.periods"].bfloat16().float()
    peer.rope_embeddings.inv_freq.copy_(1 / rounded)
    state |= {"rope_embed.periods": rounded, "local_cls_norm.weight": torch.ones(64)}
    wrapped = {f"backbone.{name}": value for name, value in state.items()}
    wrapped["dino_head.last_layer.weight"] = torch.ones(5, 3)
    torch.save(dict(teacher=wrapped), tmp_path / "teacher.pth")
    assert guess(tmp_path / "teacher.pth") == "dinov3"
    ours = tower("dinov3", tmp_path / "teacher.pth")
    assert ours[0].rope_dtype == "bfloat16"
    for size in SIZES:
        images, masks = images_and_masks(size)
        expected = dino_peers.run(peer, images, masks)
        assert_same("dinov3", ours, images, masks, expected, library="transformers")
    assert np.abs(dino_peers.run(peer, images_and_masks((32, 32))[0]) - exact).max() > 1e-3


@pytest.mark.parametrize("options", [PEERS["mlp"], PEERS["gated"], PEERS["no_bias"]])
def test_there_and_back_is_bit_identical(options, tmp_path):
    peer = dino_peers.hf_dinov3(**options)
    peer.save_pretrained(tmp_path / "theirs")
    convert("hf_dinov3", tmp_path / "theirs", "big_ssl", tmp_path / "ours", {})
    convert("big_ssl", tmp_path / "ours", "hf_dinov3", tmp_path / "back", {})
    back, info = transformers.AutoModel.from_pretrained(
        tmp_path / "back", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values())
    expected, found = peers.state(peer), peers.state(back)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        parity_figure("hf_dinov3", "export", found[name], value)
    images = dino_peers.images((24, 48))
    np.testing.assert_array_equal(dino_peers.run(back.eval(), images), dino_peers.run(peer, images))
    theirs = peer.config.to_dict()
    for key, value in back.config.to_dict().items():
        assert value == theirs[key] or key in ("_name_or_path", "image_size"), key


@pytest.mark.parametrize("options", [{}, dict(key_bias=True, num_register_tokens=0)])
def test_the_official_layout_can_be_exported_to_transformers(options, tmp_path):
    """Without registers too, for which transformers has an empty array, and our file none."""
    peer = dino_peers.hf_dinov3(**options)
    torch.save(dino_peers.official_dinov3(peer), tmp_path / "dinov3.pth")
    convert("dinov3", tmp_path / "dinov3.pth", "hf_dinov3", tmp_path / "out", {})
    back = transformers.AutoModel.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    images = dino_peers.images((24, 48))
    np.testing.assert_allclose(
        dino_peers.run(back, images), dino_peers.run(peer, images), rtol=1e-6, atol=1e-6
    )
    features = big_ssl.load(tmp_path / "out").patch_features(np.zeros((1, 40, 24, 3), np.uint8), resize=False)
    assert features.shape == (1, 15, 64)
