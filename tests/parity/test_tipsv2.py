"""TIPSv2's image towers against transformers' on the same random weights, as transformers saves them."""

import pytest

from big_ssl.weights.guess import guess

torch = pytest.importorskip("torch", reason="make parity installs PyTorch")
transformers = pytest.importorskip("transformers", reason="make parity installs transformers")

from tests.parity import dino_peers  # noqa: E402  (needs PyTorch)
from tests.parity.test_dino import SIZES, assert_same, tower  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("options", [{}, dict(use_swiglu_ffn=True, num_register_tokens=2), dict(text=True)])
def test_transformers_files(options, tmp_path):
    peer = dino_peers.hf_tipsv2(**options)
    peer.save_pretrained(tmp_path)
    assert guess(tmp_path) == "hf_tipsv2"
    ours = tower("hf_tipsv2", tmp_path)
    peer = peer.vision_model if "text" in options else peer
    for size in [*SIZES, (27, 45)]:
        images = dino_peers.images(size)
        masks = None if size == (27, 45) else dino_peers.masks(size)
        for mask in (None, masks):
            expected = dino_peers.run(peer, images, mask)
            assert_same("hf_tipsv2", ours, images, mask, expected, library="transformers")
